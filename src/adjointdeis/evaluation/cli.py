"""The command `adjointdeis-eval`: vulnerability and detection rates from score files alone."""

import argparse
import os
import sys
from collections.abc import Sequence

COMMANDS = (
    "score",
    "compare",
    "map",
    "mad",
    "threshold",
    "convert",
    "verify",
    "sign",
    "synth",
    "paper",
)
_EPILOG = """\
examples:
  adjointdeis-eval synth demo.csv --subjects demo-subjects.csv
  adjointdeis-eval demo.csv --fmr 0.001 0.01
  adjointdeis-eval demo.csv --impostors all same-sex same-sex-and-group --subjects demo-subjects.csv
  adjointdeis-eval threshold demo.csv --fmr 0.001 --out thresholds.json
  adjointdeis-eval demo.csv --thresholds thresholds.json
  adjointdeis-eval compare demo.csv strong weak --probe other
  adjointdeis-eval convert --from mvr --to canonical morphs.txt --into scores.csv --system arcface
  adjointdeis-eval verify morph.png
"""


def parser() -> argparse.ArgumentParser:
    """The command line; building it imports nothing heavy."""
    top = argparse.ArgumentParser(
        prog="adjointdeis-eval",
        description="Face-morphing attack evaluation from comparison scores: MMPMR and its "
        "relatives with counts, intervals, probe policy and impostor policy in every row.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    score = commands.add_parser("score", help="evaluate a score file (the default command)")
    _scores(score)
    score.add_argument("--fmr", type=float, nargs="+", default=None, metavar="F",
                       help="target false match rates as shares (default 0.001)")  # fmt: skip
    score.add_argument("--impostors", nargs="+", default=None, metavar="POLICY",
                       help="all, same-sex, same-sex-and-group (default all)")  # fmt: skip
    score.add_argument("--thresholds", metavar="FILE", help="threshold records instead of --fmr")
    score.add_argument("--variants", nargs="+", metavar="V",
                       help="MMPMR MinMax ProdAvg FMMPMR IAPMR RMMR-<variant>")  # fmt: skip
    score.add_argument("--probe", nargs="+", metavar="POLICY", help="source, other (default both)")
    score.add_argument("--attacks", nargs="+")
    score.add_argument("--systems", nargs="+")
    _statistics(score)
    score.add_argument("--json", metavar="FILE", help="result file (default SCORES.result.json)")
    score.add_argument("--markdown", metavar="FILE", help="also write the tables to a file")

    compare = commands.add_parser("compare", help="two attacks on the same pairs: paired tests")
    _scores(compare)
    compare.add_argument("first")
    compare.add_argument("second")
    compare.add_argument("--probe", required=True, choices=("source", "other"))
    compare.add_argument("--impostors", default="all", metavar="POLICY")
    compare.add_argument("--fmr", type=float, default=0.001, metavar="F")
    compare.add_argument("--systems", nargs="+")
    _statistics(compare)

    potential = commands.add_parser("map", help="morphing attack potential MAP[r, c]")
    _scores(potential)
    potential.add_argument("--impostors", default="all", metavar="POLICY")
    potential.add_argument("--fmr", type=float, default=0.001, metavar="F")
    potential.add_argument("--thresholds", metavar="FILE")
    _statistics(potential)

    mad = commands.add_parser("mad", help="morphing attack detection: MACER, BSCER, D-EER")
    _scores(mad, subjects=False)
    mad.add_argument("--det", metavar="CSV", help="also write every operating point (DET curve)")

    threshold = commands.add_parser("threshold", help="estimate thresholds and write records")
    _scores(threshold)
    threshold.add_argument("--fmr", type=float, nargs="+", default=[0.001], metavar="F")
    threshold.add_argument("--impostors", nargs="+", default=["all"], metavar="POLICY")
    threshold.add_argument("--systems", nargs="+")
    threshold.add_argument("--alignment", help="how faces were cropped, if the sidecar lacks it")
    threshold.add_argument("--impostor-set", help="a name for the people behind the impostors")
    threshold.add_argument("--out", metavar="FILE", help="where to write the records (JSON)")

    convert = commands.add_parser("convert", help="between score formats")
    convert.add_argument("inputs", nargs="+", metavar="IN")
    convert.add_argument("--from", dest="source", required=True, metavar="FORMAT")
    convert.add_argument("--to", dest="target", default="canonical", metavar="FORMAT")
    convert.add_argument("--into", nargs="+", required=True, metavar="OUT")
    convert.add_argument("--system", default="system")
    convert.add_argument("--attack", default="attack")
    convert.add_argument("--probe", default="other", choices=("source", "other"))
    convert.add_argument("--score-type", choices=("similarity", "dissimilarity"))

    verify = commands.add_parser("verify", help="read the provenance of morph images (PNG)")
    verify.add_argument("images", nargs="+", metavar="FILE")
    verify.add_argument("--source", nargs="+", default=[], metavar="IMAGE",
                        help="also check that these images are among the sources")  # fmt: skip
    verify.add_argument("--json", action="store_true", help="print JSON, one object a line")

    sign = commands.add_parser("sign", help="sign morphs with content credentials (C2PA)")
    sign.add_argument("images", nargs="+", metavar="FILE")
    sign.add_argument("--certificate", required=True, metavar="PEM", help="chain, your own first")
    sign.add_argument("--key", required=True, metavar="PEM", help="private key, PKCS 8")
    sign.add_argument("--algorithm", default="es256", help="what the key is for (default es256)")

    synth = commands.add_parser("synth", help="write synthetic scores to try the command on")
    synth.add_argument("scores", metavar="OUT.csv")
    synth.add_argument("--subjects", metavar="OUT.csv", help="also write their covariates")
    synth.add_argument("--n-subjects", type=int, default=60)
    synth.add_argument("--n-morphs", type=int, default=120)
    synth.add_argument("--seed", type=int, default=0)

    paper = commands.add_parser("paper", help="the paper's tables as counts with intervals")
    paper.add_argument("table", choices=("table1", "table4", "table5", "table6"))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0 is success, 1 a failed verification, 2 an error of the input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        arguments.insert(0, "score")
    options = parser().parse_args(arguments)
    from adjointdeis.evaluation import commands
    from adjointdeis.evaluation.errors import EvaluationError
    from adjointdeis.extras import MissingPackageError

    try:
        return int(getattr(commands, options.command)(options) or 0)
    except BrokenPipeError:
        # The reader closed the pipe, as `| head` does; the flush at exit must not fail again.
        sys.stdout = open(os.devnull, "w")
        return 0
    except (EvaluationError, MissingPackageError, OSError) as error:
        print(f"adjointdeis-eval: {error}", file=sys.stderr)
        return 2


def _scores(command: argparse.ArgumentParser, subjects: bool = True) -> None:
    command.add_argument("scores", help="canonical score file, CSV or Parquet")
    if subjects:
        command.add_argument("--subjects", metavar="CSV", help="subject_id, sex, group")


def _statistics(command: argparse.ArgumentParser) -> None:
    command.add_argument("--replicates", type=int, default=2000, help="0: no subject bootstrap")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--confidence", type=float, default=0.95)


if __name__ == "__main__":
    sys.exit(main())
