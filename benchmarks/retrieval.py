"""Seconds and memory of exact retrieval, by the size of the gallery, with numpy and with faiss where it is installed.

    python -m benchmarks.retrieval

Every search runs in a process of its own, so that its peak of memory is its own. Queries are noisy copies of gallery
items, all unit vectors; only the search is timed, the median of the rounds. Memory is what the search adds at its peak
to the embeddings. The last columns count the passes of the cross-modal encoder that ranking both ways takes, every item
a query: at most 2·N·k by the matching head, about N by likelihood (an item is fused once), N² without a first stage.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from src.metrics.nearest import has_faiss, top_k_faiss, top_k_numpy
from src.metrics.recall import ranks
from src.metrics.relevance import Relevance
from src.report.tables import table


def unit_rows(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, width), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(engine: str, size: int, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds, and megabytes above what was there before."""
    rng = np.random.default_rng(0)
    gallery = unit_rows(rng, size, args.width)
    wanted = np.arange(args.queries) % size
    queries = gallery[wanted] + 0.1 * unit_rows(rng, args.queries, args.width)
    searches = {
        "numpy": lambda: top_k_numpy(queries, gallery, args.k),
        "faiss": lambda: top_k_faiss(queries, gallery, args.k),
        "ranks": lambda: ranks(queries, gallery, Relevance.same(wanted, np.arange(size))),
    }
    small = gallery[: args.k]
    top_k_faiss(small, small, 1) if engine == "faiss" else top_k_numpy(small, small, 1)  # imports, warms up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(args.rounds):
        began = time.perf_counter()
        searches[engine]()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": float(np.median(seconds)), "megabytes": peak / 1024}


def in_process(engine: str, size: int, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.retrieval", "--one", engine, str(size)]
    for name in ("queries", "width", "k", "rounds"):
        command += [f"--{name}", str(getattr(args, name))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000, 25000, 100000], metavar="N")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--width", type=int, default=128, help="of an embedding (default: the demo's, 128)")
    parser.add_argument("--k", type=int, default=16, help="how many are ranked again (default: 16)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args)))
        return
    engines = ["numpy", *(["faiss"] if has_faiss() else []), "ranks"]
    rows = []
    for size in args.sizes:
        found = {engine: in_process(engine, size, args) for engine in engines}
        row: list[object] = [f"{size:,}"]
        for engine in engines:
            row += [f"{found[engine]['seconds']:.3f}", f"{found[engine]['megabytes']:.0f}"]
        rows.append([*row, f"{2 * size * args.k:,}", f"{size:,}", f"{size**2:,}", f"{size / (2 * args.k):,.0f}"])
    names = [f"top {args.k}, {engine}" if engine != "ranks" else "ranks, numpy" for engine in engines]
    headers = ["gallery", *(part for name in names for part in (f"{name}: s", "MB"))]
    headers += ["fused: matching", "likelihood", "all pairs", "pairs saved ×"]
    print(f"{args.queries:,} queries, width {args.width}, median of {args.rounds} rounds\n")
    print(table(rows, headers))


if __name__ == "__main__":
    main()
