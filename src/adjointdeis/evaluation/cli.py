"""The command `adjointdeis-eval`: vulnerability and detection rates from score files alone."""

import argparse
import os
import sys
from collections.abc import Sequence

from adjointdeis.terminal import prepare

COMMANDS = (
    "score",
    "report",
    "verification",
    "compare",
    "map",
    "mad",
    "detection",
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
  adjointdeis-eval report scores.csv -o report --subjects demo-subjects.csv --by sex
  adjointdeis-eval verification scores.csv
  adjointdeis-eval detection detection.csv -o report
  adjointdeis-eval verify morph.png

names that older tools use: IAPAR is IAPMR, RIAPAR is RMMR-IAPMR (IAPMR + FNMR), RMMR is
RMMR-MMPMR (MMPMR + FNMR); APCER and BPCER of ISO/IEC 30107-3 are MACER and BSCER here.
"""


_FORMATS = """\
formats, and the files that each takes:
  canonical  scores.csv or scores.parquet with its sidecar JSON; what every command reads
  generic    any table with a header; --columns score=Sim morph_id=Morph subject_id=Who ...
  matrix     scores.npy or .npz, then a CSV of labels of its rows and one of its columns
  mvr        `morph; subject; sample; score`, and with five fields the bona fide comparisons
  map        a folder with one TSV per recogniser and FRS_Info.json (Morphing Attack Potential)
  bob        4 or 5 columns, comparison CSV or PAD CSV; NaN is a failure to acquire
  nist       FATE MORPH logs of comparison, single or differential detection
  pyeer      two files, genuine then impostor, score in the last column
  revelio    two files, bona fide then morph, one score per line

mvr, map, bob columns, pyeer and revelio have no header; one that names the fields in their order is
passed over, any other is refused. A line that begins with # is a comment, unless it has the fields
of a score: then it is refused, above the first score too, for # may be the beginning of an id.

which probe policy to state:
  source     morphs were compared with the very images that they were made from: the attacker's
             best case, and often tens of points higher
  other      morphs were compared with other images of the same people, as at a border; state it
             only if you know it: no file says so, and the two are never mixed
"""


_DETECTION = """\
columns, in any order; the first five are required:
  detector     its name
  attack       the attack of a morph; empty for a bona fide image
  label        morph or bona_fide
  image        name of the image, once under one detector, training and degradation
  score        larger says morph; empty where the detector failed
  kind         s_mad (one image, the default), d_mad (with a live capture) or demorphing
  trained_on   given (the default), all, an attack, without:<attack>, hardened or shuffled
  degradation  what the images went through; none is the default
  subject_1    who is on the image, or the morph's first person: for intervals over people
  subject_2    the morph's second person

example, a detector of your own whose scores you have (save as mine.csv):
  detector,attack,label,subject_1,subject_2,image,score
  mine,,bona_fide,001,,001_03.png,0.08
  mine,opencv,morph,001,014,001_014.png,0.91
then
  adjointdeis-eval detection mine.csv -o report
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
    score.add_argument("--fmr", type=_share, nargs="+", default=None, metavar="F",
                       help="target false match rates as shares (default 0.001)")  # fmt: skip
    score.add_argument("--impostors", nargs="+", default=None, metavar="POLICY",
                       help="all, same-sex, same-sex-and-group (default all)")  # fmt: skip
    score.add_argument("--thresholds", metavar="FILE", help="threshold records instead of --fmr")
    score.add_argument("--variants", nargs="+", metavar="V",
                       help="MMPMR MinMax ProdAvg FMMPMR IAPMR RMMR-<variant>")  # fmt: skip
    score.add_argument("--probe", nargs="+", metavar="POLICY", help="source, other (default both)")
    score.add_argument("--attacks", nargs="+")
    score.add_argument("--by", nargs="+", choices=("sex", "group", "age"),
                       help="also the morphs of each sex, group or age band alone")  # fmt: skip
    _statistics(score)
    score.add_argument("--json", metavar="FILE", help="result file (default SCORES.result.json)")
    score.add_argument("--markdown", metavar="FILE", help="also write the tables to a file")

    report = commands.add_parser(
        "report", help="tables and figures of score files: HTML, Markdown, LaTeX, CSV, JSON"
    )
    _scores(report, nargs="+")
    _page(report, "where to", required=True)
    report.add_argument("--title", help="default: the first file's name")
    report.add_argument("--fmr", type=_share, nargs="+", metavar="F")
    report.add_argument("--impostors", nargs="+", metavar="POLICY")
    report.add_argument("--thresholds", metavar="FILE")
    report.add_argument("--by", nargs="+", choices=("sex", "group", "age"))
    _statistics(report)

    verification = commands.add_parser(
        "verification", help="EER, FNMR at FMR and DET of a recogniser, without any morph"
    )
    _scores(verification)
    verification.add_argument("--fmr", type=_share, nargs="+", metavar="F")
    verification.add_argument("--impostors", default="all", metavar="POLICY")
    _page(verification, "also a report with the figures")
    _statistics(verification)

    compare = commands.add_parser("compare", help="two attacks on the same pairs: paired tests")
    _scores(compare)
    compare.add_argument("first")
    compare.add_argument("second")
    compare.add_argument("--probe", required=True, choices=("source", "other"))
    compare.add_argument("--impostors", default="all", metavar="POLICY")
    compare.add_argument("--fmr", type=_share, default=0.001, metavar="F")
    _statistics(compare)

    potential = commands.add_parser("map", help="morphing attack potential MAP[r, c]")
    _scores(potential)
    potential.add_argument("--impostors", default="all", metavar="POLICY")
    potential.add_argument("--fmr", type=_share, default=0.001, metavar="F")
    potential.add_argument("--thresholds", metavar="FILE")
    _statistics(potential)

    mad = commands.add_parser("mad", help="morphing attack detection: MACER, BSCER, D-EER")
    _scores(mad, subjects=False)
    _statistics(mad)
    mad.add_argument("--det", metavar="CSV", help="also write every operating point (DET curve)")

    detection = commands.add_parser(
        "detection",
        help="detectors trained on one attack and tested on another, degraded, hardened",
        epilog=_DETECTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    detection.add_argument("scores", metavar="CSV", help="a detection.csv, see below")
    _page(detection, "also a page with the DET curves")
    _statistics(detection)

    threshold = commands.add_parser("threshold", help="estimate thresholds and write records")
    _scores(threshold)
    threshold.add_argument("--fmr", type=_share, nargs="+", default=[0.001], metavar="F")
    threshold.add_argument("--impostors", nargs="+", default=["all"], metavar="POLICY")
    threshold.add_argument("--alignment", help="how faces were cropped, if the sidecar lacks it")
    threshold.add_argument("--impostor-set", help="a name for the people behind the impostors")
    threshold.add_argument("-o", "--out", metavar="FILE", help="where to write the records (JSON)")
    threshold.add_argument("--confidence", type=_share, default=0.95)

    convert = commands.add_parser(
        "convert",
        help="between score formats",
        epilog=_FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("inputs", nargs="+", metavar="IN")
    convert.add_argument("--from", dest="source", required=True, metavar="FORMAT")
    convert.add_argument("--to", dest="target", default="canonical", metavar="FORMAT")
    convert.add_argument("-o", "--into", nargs="+", required=True, metavar="OUT")
    convert.add_argument("--system", default="system")
    convert.add_argument("--attack", default="attack")
    convert.add_argument("--probe", choices=("source", "other"),
                         help="which probes morphs met; needed for morphs")  # fmt: skip
    convert.add_argument("--score-type", choices=("similarity", "dissimilarity"))
    convert.add_argument("--columns", nargs="+", metavar="NAME=COLUMN",
                         help="of --from generic: canonical name and column")  # fmt: skip
    convert.add_argument("--kind", default="", choices=("mated", "nonmated", "morph", "mad"),
                         help="of every row, where a generic file does not say")  # fmt: skip
    convert.add_argument("--alignment", default="", help="how faces were cropped")
    convert.add_argument("--model-fingerprint", default="", metavar="SHA256")
    convert.add_argument("--data-set", default="", metavar="ID", help="which faces these are of")

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
    from adjointdeis.texts import printable

    try:
        return int(getattr(commands, options.command)(options) or 0)
    except BrokenPipeError:
        # The reader closed the pipe, as `| head` does; the flush at exit must not fail again.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return 0
    except (EvaluationError, MissingPackageError, OSError) as error:
        print(f"adjointdeis-eval: {printable(error, chr(10))}", file=sys.stderr)
        return 2


def _share(text: str) -> float:
    """0.001, or what it is in percent, 0.1%."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a share such as 0.001, or 0.1%"
        ) from None


def _scores(
    command: argparse.ArgumentParser, subjects: bool = True, nargs: str | None = None
) -> None:
    command.add_argument("scores", nargs=nargs, help="canonical score file, CSV or Parquet")
    command.add_argument("--systems", nargs="+", metavar="NAME", help="of these alone")
    if subjects:
        command.add_argument("--subjects", metavar="CSV", help="subject_id, sex, group, age")


def _page(command: argparse.ArgumentParser, what: str, required: bool = False) -> None:
    command.add_argument("-o", "--out", required=required, metavar="DIR", help=what)
    command.add_argument("--no-plots", action="store_true", help="tables only, in seconds")


def _statistics(command: argparse.ArgumentParser) -> None:
    command.add_argument("--replicates", type=int, default=2000, help="0: no subject bootstrap")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--confidence", type=_share, default=0.95)


if __name__ == "__main__":
    prepare()
    sys.exit(main())
