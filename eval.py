"""Measures a trained model on a dataset, searches a folder with it, writes captions and transcripts, or draws.

python eval.py --checkpoint runs/demo/pretrain                      retrieval and captions on the test split
python eval.py --checkpoint runs/demo/pretrain eval.rerank.top_k=0        … by embeddings alone
python eval.py --checkpoint pretrained/opt_demo --query 红底，中间一只猫 --gallery photos --save-index photos.index
python eval.py --checkpoint pretrained/opt_demo --query question.wav --index photos.index
python eval.py --checkpoint pretrained/opt_demo --input photos      captions of images, transcripts of audio clips
python eval.py --checkpoint runs/demo/speech_to_text --input said.wav --seen image.png
python eval.py --checkpoint runs/demo/text_to_image --draw 红底，中间一只猫 --draw-samples 8
"""

from dataclasses import replace
from pathlib import Path

from src import cli
from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.files import locate
from src.evaluation.options import parse
from src.inference import answers as query
from src.inference.load import load_model
from src.report.tables import summary
from src.runtime import setup
from src.tasks import registry


def main() -> None:
    args = parse(__doc__)
    folder = locate(args.checkpoint)
    settings = list(args.settings)
    if args.draw_samples is not None:
        settings.append(f"eval.image_generation.samples={args.draw_samples}")
    # the network is the checkpoint's, with its vocabulary and codes, whichever configuration is used
    config = load_checkpoint_config(folder, settings, args.config)
    # before the model is built, so that mistakes are told at once
    search = query.prepare(args.query, args.gallery, args.index, folder, config)
    things = query.read_things(args.input, config) if args.input else []
    seen = query.read_seen(args.seen, things, config) if args.seen else None
    subject = query.read_subject(args.draw, config) if args.draw is not None else None
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    mode = "pynative" if search and search.few else config.runtime.mode
    setup(replace(config.runtime, distributed=False, mode=mode), config.seed)
    config, model = load_model(folder, settings, args.config)
    evaluator = registry.get(config.task).evaluator(config, model)
    if search:
        search.run(evaluator, args.top, args.output or run_folder(folder) / "query", args.save_index)
    elif things:
        query.describe(evaluator, things, args.output, seen)
    elif subject:
        query.draw(evaluator, subject, args.output or run_folder(folder) / "drawing")
    else:
        output = args.output or run_folder(folder) / f"eval-{args.split or config.eval.split}"
        print(f"{summary(evaluator.run(args.split, output))}\n\n{output / 'metrics.json'}")


def run_folder(checkpoint: Path) -> Path:
    """Where results of a checkpoint go; a model in the box is left as it is."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else Path("runs") / checkpoint.name


if __name__ == "__main__":
    cli.run(main)
