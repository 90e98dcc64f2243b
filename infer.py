"""Asks a trained model about your own files: ranks a gallery, captions images, transcribes audio, generates images.

    python infer.py --query 红底，左边一只猫 --gallery photos --save-index photos.index
    python infer.py --query question.wav --index photos.index           encodes nothing of the folder
    python infer.py --input photos                                      captions of images, transcripts of audio clips
    python infer.py --checkpoint runs/demo/speech_to_text --input said.wav --with-image image.png
    python infer.py --checkpoint runs/demo/text_to_image --generate 红底，中间一只猫 --samples 8
"""

import argparse
from dataclasses import replace

from src import cli
from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.files import locate, results_folder
from src.inference import answers
from src.inference.engine import Engine
from src.inference.load import load_model
from src.runtime import setup


def parse() -> argparse.Namespace:
    parser = cli.CommandParser(description=__doc__)
    bundled = cli.ROOT / "pretrained" / "opt_demo"
    default = f"{cli.CHECKPOINT_HELP} (default: the bundled checkpoint)"
    parser.add_argument("--checkpoint", default=bundled, metavar="DIR", type=cli.path, help=default)
    parser.add_argument("--config", metavar="FILE", type=cli.path, help=cli.OTHER_CONFIG_HELP)
    parser.add_argument("--output", metavar="DIR", type=cli.path, help="where results go (default: in the run folder)")
    parser.add_argument("--query", metavar="TEXT|IMAGE|AUDIO", help="what to look for in --gallery or --index")
    parser.add_argument("--gallery", metavar="DIR", type=cli.path, help="folder of images, audio clips and .txt files")
    parser.add_argument("--index", metavar="FILE", type=cli.path, help="the gallery as --save-index kept it")
    parser.add_argument("--save-index", metavar="FILE", type=cli.path, help="keep the gallery's embeddings")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many --query shows (default: 5)")
    parser.add_argument("--input", metavar="FILE|DIR", type=cli.path, help="images to caption, audio to transcribe")
    parser.add_argument("--with-image", metavar="IMAGE", type=cli.path, help="belongs to the audio clips of --input")
    parser.add_argument("--generate", metavar="TEXT|AUDIO", help="what to generate images from")
    parser.add_argument("--samples", type=int, metavar="N", help="images (default: eval.image_generation.samples)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help=cli.SETTINGS_HELP)
    args = parser.parse_intermixed_args()
    if (args.gallery or args.index) is None and (args.query or args.save_index) is not None:
        parser.error("--query or --save-index needs --gallery or --index")
    if (args.gallery or args.index) is not None and (args.query, args.save_index) == (None, None):
        parser.error("--gallery or --index needs --query or --save-index")
    verbs = [(args.gallery or args.index), args.input, args.generate]
    if sum(verb is not None for verb in verbs) != 1:
        parser.error("give one of --query with --gallery or --index, --input, --generate")
    if args.with_image is not None and args.input is None:
        parser.error("--with-image goes with --input")
    if args.samples is not None and (args.generate is None or args.samples < 1):
        parser.error("--samples goes with --generate and must be at least 1")
    if args.top < 1:
        parser.error("--top must be at least 1")
    if args.samples is not None:
        args.settings.append(f"eval.image_generation.samples={args.samples}")
    return args


def main() -> None:
    args = parse()
    folder = locate(args.checkpoint)
    # the network is the checkpoint's, with its vocabulary and codes, whichever configuration is used
    config = load_checkpoint_config(folder, args.settings, args.config)
    answers.check_network(config)
    # before the model is built, so that mistakes are told at once
    searches = args.gallery is not None or args.index is not None
    search = answers.read_search(args.query, args.gallery, args.index, folder, config) if searches else None
    things = answers.read_input(args.input, config) if args.input is not None else []
    image = answers.read_companion(args.with_image, things, config) if args.with_image is not None else None
    subject = answers.read_subject(args.generate, config) if args.generate is not None else None
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    mode = "pynative" if search and search.few else config.runtime.mode
    setup(replace(config.runtime, distributed=False, mode=mode), config.seed)
    engine = Engine(*load_model(folder, args.settings, args.config))
    if search:
        search.run(engine, args.top, args.output or results_folder(folder) / "query", args.save_index)
    elif things:
        answers.describe(engine, things, args.output, image)
    else:
        answers.generate(engine, subject, args.output or results_folder(folder) / "generated")


if __name__ == "__main__":
    cli.run(main)
