"""What infer.py is asked for, checked before anything is loaded."""

from collections.abc import Callable
from typing import Any

BUNDLED, BUNDLED_FOR_QUESTIONS = "opt_demo", "opt_demo_vqa"  # checkpoints, where none is given


def check_request(args: Any, refuse: Callable[[str], None]) -> None:
    """Passes what contradicts itself among the options of infer.py to ``refuse``, as one line."""
    searches = args.gallery is not None or args.index is not None
    if searches != (args.query is not None or args.save_index is not None):
        refuse("--query or --save-index goes together with --gallery or --index")
    if args.classify is not None and args.input is None:
        refuse("--classify goes with --input")
    if any("=" in label for label in args.classify or ()):
        refuse("--classify: write key=value words before it: a label holds no =")
    if args.classify is not None and args.with_image is not None:
        refuse("--classify goes without --with-image")
    if args.ask is not None and args.input is None:
        refuse("--ask goes with --input")
    if args.ask is not None and (args.classify is not None or args.with_image is not None):
        refuse("--ask goes without --classify and --with-image")
    if args.with_image is not None and args.input is None:
        refuse("--with-image goes with --input")
    if args.samples is not None and (args.generate is None or args.samples < 1):
        refuse("--samples goes with --generate and must be at least 1")
    if searches + (args.input is not None) + (args.generate is not None) != 1:
        refuse("give one of --query (or --save-index), --input, --generate")
    if args.top < 1:
        refuse("--top must be at least 1")


def checkpoint_of(args: Any) -> Any:
    """The checkpoint that is asked: the one that is given, or the bundled one that can answer."""
    return args.checkpoint or (BUNDLED if args.ask is None else BUNDLED_FOR_QUESTIONS)
