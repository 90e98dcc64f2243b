"""Starts this machine's ranks of a Python script through msrun and looks after them.

python tools/launch_ranks.py --worker_num 2 --log_dir runs/logs/mine train.py --config FILE runtime.distributed=true
python tools/launch_ranks.py --nodes 2 --node_rank 0 --master_addr 10.0.0.1 --log_dir runs/logs/mine SCRIPT ...
python tools/launch_ranks.py --rank_table_file hccl.json --log_dir runs/logs/mine SCRIPT ...

scripts/run_distributed_ascend.sh calls it. A rank that fails ends all ranks of this machine; the end of its log is
shown, and this command ends with its exit code. SIGINT, SIGTERM and SIGHUP are passed on to the ranks, which end their
step and save; this command then ends with exit code 75. Ranks that are still there after --grace seconds, or at a
second signal, are killed. Options that msrun has, too, have msrun's names.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli
from src.launch.cluster import PORT, Request, environment_of, msrun_command, place
from src.launch.supervisor import STOP_GRACE, Supervisor


def parse() -> cli.Arguments:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--worker_num", type=int, metavar="N", help="ranks of all machines (default: 8 on each)")
    parser.add_argument("--nodes", type=int, metavar="N", help="machines (default: 1, or the servers of the table)")
    parser.add_argument("--node_rank", type=int, metavar="N", help="number of this machine, from 0")
    parser.add_argument("--master_addr", metavar="HOST", help="address of machine 0 (default: of the table)")
    parser.add_argument("--master_port", type=int, default=PORT, metavar="PORT", help=f"port there (default: {PORT})")
    parser.add_argument("--any_port", action="store_true", help=f"several machines meet on {PORT} all the same")
    parser.add_argument("--rank_table_file", type=cli.user_path, metavar="FILE", help="HCCL's format 1.0, 1.2 or 2.0")
    parser.add_argument("--log_dir", type=cli.user_path, required=True, metavar="DIR", help="a log for each rank")
    parser.add_argument(
        "--grace", type=float, default=STOP_GRACE, metavar="SECONDS", help=f"to stop in (default: {STOP_GRACE:.0f})"
    )
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT ...", help="a Python script, its arguments")
    args = parser.parse_args()
    if not args.script:
        parser.error("SCRIPT is missing")
    return args


def main() -> None:
    args = parse()
    request = Request(
        port=args.master_port,
        any_port=args.any_port,
        ranks=args.worker_num,
        nodes=args.nodes,
        node=args.node_rank,
        address=args.master_addr,
        table=args.rank_table_file,
    )
    part = place(request)
    log_dir = args.log_dir.absolute()
    command = msrun_command(part, log_dir, args.rank_table_file, args.script)
    sys.exit(
        Supervisor(log_dir, part.first, alone=part.nodes == 1, grace=args.grace).run(command, environment_of(part))
    )


if __name__ == "__main__":
    cli.run(main)
