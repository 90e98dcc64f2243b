"""Asks a trained model about your own files: ranks, captions, transcribes, classifies, answers, generates images.

python infer.py --query 红底，左边一只猫 --gallery photos --save-index photos.index
python infer.py --query question.wav --index photos.index           encodes nothing of the folder
python infer.py --input photos                                      captions of images, transcripts of audio clips
python infer.py --classify 猫 狗 苹果 --input photos                  which of these each file shows, untrained
python infer.py --input photos --ask 左边有几只猫？                   of each image
python infer.py --checkpoint runs/demo/text_to_image --generate 红底，中间一只猫 --samples 8
"""

from src import cli
from src.inference.requests import check_request, checkpoint_of

CHECKPOINT_HELP = "run (also RUN@best, RUN@step-…) or checkpoint folder (default: one of the bundled in pretrained/)"


def parse() -> cli.Arguments:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--checkpoint", metavar="DIR", type=cli.user_path, help=CHECKPOINT_HELP)
    parser.add_argument("--config", metavar="FILE", type=cli.user_path, help="instead of the checkpoint's own")
    parser.add_argument("--output", metavar="DIR", type=cli.user_path, help="of the results (default: the run folder)")
    verbs = parser.add_argument_group("one of")
    verbs.add_argument("--query", metavar="TEXT|IMAGE|AUDIO", help="find what belongs to it in --gallery or --index")
    verbs.add_argument("--save-index", metavar="FILE", type=cli.user_path, help="keep the embeddings of --gallery")
    verbs.add_argument("--input", metavar="FILE|DIR", type=cli.user_path, help="caption images, transcribe audio")
    verbs.add_argument("--generate", metavar="TEXT|AUDIO", help="generate images from it")
    parser.add_argument("--classify", nargs="+", metavar="LABEL", help="which label is nearest to each file of --input")
    parser.add_argument("--ask", metavar="TEXT|AUDIO", help="a question about each image of --input")
    parser.add_argument("--gallery", metavar="DIR", type=cli.user_path, help="of images, audio, .txt, in folders too")
    parser.add_argument("--index", metavar="FILE", type=cli.user_path, help="the gallery as --save-index kept it")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="hits that --query shows (default: 5)")
    parser.add_argument("--with-image", metavar="IMAGE", type=cli.user_path, help="of the audio clips of --input")
    parser.add_argument("--samples", type=int, metavar="N", help="images that --generate makes")
    parser.add_ema()
    parser.add_settings()
    args = parser.parse_intermixed_args()
    check_request(args, parser.error)
    return args


def main() -> None:
    args = parse()
    # not before: they import MindSpore, for which --help and mistakes in the arguments need not wait
    from src.checkpoints.checkpoint import load_checkpoint_config
    from src.checkpoints.places import locate, results_folder
    from src.files import require_writable
    from src.inference import answers, load
    from src.inference.loading import check_network

    folder, settings = locate(checkpoint_of(args), args.ema), list(args.settings)
    if args.samples is not None:
        settings.append(f"eval.image_generation.samples={args.samples}")
    # the network is the checkpoint's, with its vocabulary and codes, whichever configuration is used
    config = load_checkpoint_config(folder, settings, args.config)
    check_network(config)
    # before the model is built, so that mistakes are told at once
    sought = args.query, args.gallery, args.index, args.save_index
    search = answers.read_search(*sought, folder, config, args.ema) if args.gallery or args.index else None
    files = answers.find_input(args.input, config) if args.input is not None else []
    image = answers.read_companion(args.with_image, files, config) if args.with_image is not None else None
    subject = answers.read_subject(args.generate, config) if args.generate is not None else None
    question = answers.read_question(args.ask, files, config) if args.ask is not None else None
    verb = "query" if search else "classes" if args.classify else "answers" if question else "captions"
    output = require_writable(args.output or results_folder(folder) / ("generated" if subject else verb))
    settings += ["runtime.mode=pynative"] if search and search.few else []
    model = load(folder, settings, args.config, ema=args.ema)
    if search:
        search.run(model, args.top, output, args.save_index)
    elif args.classify:
        answers.classify(model, files, args.classify, output)
    elif question:
        answers.ask(model, files, question, output)
    elif files:
        answers.describe(model, files, output, image)
    else:
        answers.generate(model, subject, output)


if __name__ == "__main__":
    cli.run(main)
