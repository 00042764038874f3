"""The claims ledger: every claim of the paper as data, each with the check that measures it again.

    python -m covidlib.report.claims reports/phantom/quick          # print the ledger of a report
    python -m covidlib.report.claims --check attention-size         # measure one row anew
"""

import argparse
import math
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

from covidlib.evaluation.metrics import MECHANICS
from covidlib.report import checks
from covidlib.report.checks import Evidence, Finding, Missing
from covidlib.training import runs

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
INCONSISTENT, UNTESTABLE = "inconsistent in the paper", "not testable here"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONSISTENT, UNTESTABLE, MECHANICS)
REPRODUCE = "make reproduce PROFILE={profile} DATASET={dataset}{root}{start}"
ONE = ".venv/bin/python -m covidlib.report.claims --check {id}"
GEOMETRIC = ("horizontal_flip", "vertical_flip", "rotation", "shear", "translation", "scale")


@dataclass(frozen=True)
class Claim:
    """One claim. `check` measures it, or is a text: what reading the paper shows.

    images: the measurement needs labelled slices, so its verdict belongs to a data set.
    against: the verdict where the statement does not hold (or is left open).
    """

    id: str
    section: str
    statement: str
    paper_value: str
    check: Callable | str
    command: str = ONE
    images: bool = False
    against: str = NOT_REPRODUCED


def _on_images(id, section, statement, paper_value, check, **options):
    return Claim(id, section, statement, paper_value, partial(check, **options), REPRODUCE, images=True)


def _reading(id, section, statement, paper_value, found, verdict=UNTESTABLE):
    return Claim(id, section, statement, paper_value, found, "read the paper, {section}", against=verdict)


CLAIMS = (
    _on_images("accuracy", "abstract", "The accuracy of the improved network can reach 90.1 %.", "0.901",
               checks.accuracy, variant="improved", paper=0.901),
    _on_images("gain-pyramid", "abstract", "Fusing features of several scales improves the representation.",
               "no figure", checks.difference, variant="resnet50_fpn", against="resnet50"),
    _on_images("gain-attention", "abstract", "Attention improves the representation.", "no figure",
               checks.difference, variant="resnet50_attention", against="resnet50"),
    Claim("time-complexity", "abstract", "Time complexity is improved.", "no figure", checks.macs_ratio),
    Claim("space-complexity", "abstract", "Spatial complexity is improved.", "no figure", checks.parameter_ratio),
    Claim("geometric", "§2.1", "Flips, rotation and affine transformation make new training images.", "6 operations",
          partial(checks.operations_change, names=GEOMETRIC)),
    Claim("brightness-contrast", "§2.1", "Changing brightness and contrast makes new training images.",
          "2 operations", partial(checks.operations_change, names=("brightness", "contrast"))),
    Claim("hue-saturation", "§2.1", "Changing saturation and hue makes new training images.", "2 operations",
          partial(checks.operations_change, names=("saturation", "hue"))),
    _reading("ranges", "§2.1", "Angles, colours and shifts are drawn from a range.", "no range",
             "no range is given; covidlib.preprocessing.augmentation.PAPER holds this project's own"),
    Claim("stages", "§2.2", "conv2_3, conv3_4, conv4_6 and conv5_3 of ResNet50 are the levels to build on.",
          "4 stages", checks.stages),
    Claim("pyramid", "§2.2", "A pyramid rebuilt from them fuses low and high levels.", "Figure 2", checks.pyramid),
    Claim("attention-size", "§2.3", "The attention module changes no size.", "Figure 3", checks.attention_keeps_size),
    Claim("attention-place", "§2.3", "It is in the last residual block of conv3, conv4 and conv5, before the block's "
          "output.", "3 blocks", checks.attention_place),
    Claim("attention-reach", "§2.3", "It relates features at a long distance.", "no figure",
          checks.attention_is_global),
    Claim("parameters-kept", "§2.3", "The parameter setting of the original network is not changed.", "unchanged",
          checks.backbone_unchanged),
    Claim("cross-entropy", "§2.4", "The loss is the multi-class cross-entropy with one-hot labels (1).",
          "equation (1)", checks.cross_entropy),
    Claim("softmax", "§2.4", "Outputs become probabilities by softmax (2).", "equation (2)", checks.softmax),
    Claim("environment", "§3.1", "Experiments ran on an HP Z8G4 under Windows Server 2019 with TensorFlow-GPU 2.4.0 "
          "and Python 3.7.", "Table 1", checks.machine, against=UNTESTABLE),
    _reading("settings", "§3.1", "The experiment is described by its environment.", "not given",
             "optimiser, learning rate, batch size, input size, seeds and intervals are not given"),
    Claim("slices", "§3.2", "About 3000 images: 1350 COVID-19, 300 other viruses, 1350 healthy.", "3000",
          checks.counts_add_up),
    _reading("source", "§3.2", "The images are from the Internet.", "no source",
             "no source, patient or split is named, so neither the images nor a leak can be checked"),
    _reading("overlap", "§3.2", "Figure 6 shows how the trained network does.", "3000 slices",
             "all of the about 3000 collected images are counted in Figure 6: none is left to train on, "
             "or training images are among them", INCONSISTENT),
    Claim("plateau", "§3.2", "The validation loss tends to be stable past 35 epochs.", "35", checks.plateau, REPRODUCE,
          images=True, against=UNTESTABLE),
    Claim("iterations", "§3.2", "35 iterations (§3.2) and 35 epochs (§3.3) name the same training.", "35",
          checks.iterations, against=INCONSISTENT),
    Claim("detected", "§3.2", "2903 images were classified correctly.", "2903", checks.detected, against=INCONSISTENT),
    Claim("overall", "§3.2", "The correct images are 90.1 % of all.", "90.1 %", checks.overall),
    Claim("viral-exceeds", "§3.2", "1298 COVID-19, 1221 viral and 184 normal images were correct.", "1298, 1221, 184",
          checks.more_than_all, against=INCONSISTENT),
    Claim("balanced", "§3.2", "90.1 % describes all three classes (Figure 6, viral and normal swapped back).",
          "90.1 %", checks.balanced),
    *(_on_images(f"recall-{name}", "§3.2", f"Share of the {name} slices that is found (Figure 6{mended}).",
                 f"{recall:.3f}", checks.accuracy, variant="improved", paper=recall, label=name)
      for (name, recall), mended in zip(checks.RECALLS.items(), ("", ", mended", ", mended"), strict=True)),
    _on_images("baseline", "§3.3", "ResNet50 reaches 87 % after 35 epochs.", "0.87", checks.accuracy,
               variant="resnet50", paper=0.87),
    _on_images("gain", "§3.3", "The improved network is more accurate than ResNet50.", "+0.031",
               checks.difference, variant="improved", against="resnet50", least=0.031),
    Claim("gain-unit", "§3.3", "The accuracy rises by 3.1 %.", "3.1 %", checks.gain, against=INCONSISTENT),
    Claim("gain-chance", "§3.3", "The gain over ResNet50 is more than chance.", "no test", checks.significance,
          against=UNTESTABLE),
    *(_on_images(f"against-{other}", "§3.3", f"It is better than other networks: {name}.", "no figure",
                 checks.difference, variant="improved", against=other)
      for other, name in (("mobilenet_v2", "MobileNetV2"), ("densenet169", "DenseNet169"))),
    _reading("same-data", "§3.3", "Other methods are compared on the same data set.", "same, then similar",
             "the data set of the other methods is called the same, then similar", INCONSISTENT),
    *(Claim(f"fps-{variant}-{device}", "§3.3", f"{variant} classifies {value} frames per second on the "
            f"{device.upper()}.", str(value), partial(checks.fps, variant=variant, device=device), REPRODUCE,
            against=UNTESTABLE)
      for (variant, device), value in checks.figures.PAPER["fps"].items()),
    *(Claim(f"faster-{device}", "§3.3", f"It is faster than ResNet50 on the {device.upper()}.", times,
            partial(checks.faster, device=device), REPRODUCE)
      for device, times in (("cpu", "1.62 times"), ("gpu", "1.68 times"))),
    Claim("faster-with-more", "§3.3", "It is faster than ResNet50, to which it adds modules.", "1.62 times",
          checks.faster_than_cost, against=INCONSISTENT),
    _reading("pre-training", "§4", "ResNet50 serves as a pre-training model.", "no weights",
             "neither the weights nor what they were trained on is named"),
    Claim("lightweight", "§4", "The feature extraction is lightweight.", "no figure", checks.lightweight),
    Claim("training-speed", "§4", "Training is fast.", "no figure", checks.training_time, REPRODUCE, images=True,
          against=UNTESTABLE),
    _reading("workload", "§4", "It reduces the pressure of medical workers to a certain extent.", "no figure",
             "needs a study in a hospital; this software is for research, not for diagnosis"),
    _reading("citations", "references", "[5], [6], [7] and [9] support what they are cited for.", "4 references",
             "they are about other things", INCONSISTENT),
    _reading("uncited", "references", "The methods that the network is made of are referenced.", "none",
             "ResNet, feature pyramid networks and non-local networks are not cited", INCONSISTENT),
)


def check(runs_dir, only=None) -> list[dict]:
    """The ledger for the artifacts in `runs_dir`, as plain data. only: the id of a single row.

    Raises ValueError for an id that is not in the ledger.
    """
    chosen = [claim for claim in CLAIMS if only in (None, claim.id)]
    if not chosen:
        raise ValueError(f"no such claim; known are {', '.join(claim.id for claim in CLAIMS)}. Received: id={only!r}")
    evidence = Evidence(runs_dir)
    return [_row(claim, evidence) for claim in chosen]


def _row(claim, evidence) -> dict:
    if isinstance(claim.check, str):
        how, finding = "reading of the paper", Finding(None, claim.check)
    else:
        how = getattr(claim.check, "func", claim.check).__doc__.split("\n")[0]
        try:
            finding = claim.check(evidence)
        except Missing as reason:
            finding = reason
    stated = {name: getattr(claim, name) for name in ("id", "section", "statement", "paper_value")}
    dataset = evidence.dataset if claim.images else None
    folder = evidence.folder.resolve()
    name = evidence.dataset or "phantom"
    profile, _, start = folder.name.partition("-")  # see workflow/reproduce.py
    command = claim.command.format(**stated, profile=profile, dataset=name, start=f" WEIGHTS={start}" if start else "",
                                   root="" if name == "phantom" else " DATA_ROOT=<its folder>")
    return {**stated, "check": how, "measured": str(finding) if isinstance(finding, Missing) else finding.measured,
            "interval": _interval(finding), "dataset": dataset, "command": command,
            "verdict": verdict(claim, finding, dataset)}


def _interval(finding):
    """[low, high], or None where there is none: a single patient gives no interval."""
    interval = getattr(finding, "interval", None)
    return list(interval) if interval and all(map(math.isfinite, interval)) else None


def verdict(claim, finding, dataset) -> str:
    """One of VERDICTS. What was measured on synthetic slices is never more than `mechanics only`."""
    if isinstance(finding, Missing):
        return UNTESTABLE
    if claim.images and dataset in (None, "phantom"):
        return MECHANICS
    return REPRODUCED if finding.holds else claim.against


def write(rows, folder) -> None:
    """Write `claims.json` (a list) and `claims.md` (a table) into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(folder / "claims.json", rows)
    head = ("section", "statement", "paper", "measured here", "verdict")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        where = f"{row['dataset']}: " if row["dataset"] else ""
        cells = (row["section"], row["statement"], row["paper_value"], where + measured(row), row["verdict"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    (folder / "claims.md").write_text("\n".join(["# Claims of the paper", "", *lines, ""]), encoding="utf-8")


def measured(row) -> str:
    """What was measured, with its interval."""
    return row["measured"] + (" [{:.3g} to {:.3g}]".format(*row["interval"]) if row["interval"] else "")


def table(rows, width=None) -> str:
    """The ledger as text for a terminal, and how often each verdict was given."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    left, right = 18, max(len(name) for name in VERDICTS)
    middle = max(30, (width - left - right - 8) // 2)
    columns = (left, middle, middle, right)
    lines = [_line(("claim", "the paper", "measured here", "verdict"), columns), "-" * (sum(columns) + 6)]
    for row in rows:
        paper = f"{row['section']}: {row['statement']} ({row['paper_value']})"
        wrapped = [textwrap.wrap(text, size) or [""] for text, size in zip(
            (row["id"], paper, measured(row), row["verdict"]), columns, strict=True)]
        lines += [_line(cells, columns) for cells in zip_longest(*wrapped, fillvalue="")]
    counts = Counter(row["verdict"] for row in rows)
    return "\n".join([*lines, "", ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])])


def _line(cells, columns) -> str:
    return "  ".join(cell.ljust(size) for cell, size in zip(cells, columns, strict=True)).rstrip()


def main(arguments=None) -> int:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m covidlib.report.claims", description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default=".", help="of a report; with --check, of runs")
    parser.add_argument("--check", metavar="ID", help="measure this claim anew")
    options = parser.parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal may know no paragraph sign
    try:
        if options.check:
            print(table(check(options.folder, options.check)))
            return 0
        folder = Path(options.folder)
        if not (folder / "claims.json").is_file():
            raise FileNotFoundError(f"no claims.json in {folder}: run `make reproduce` first, and give the folder of "
                                    "its report, for example reports/phantom/quick")
        print(table(runs.read_json(folder / "claims.json")))
        print(f"\nReport: {folder / 'index.html'}")
        return 0
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
