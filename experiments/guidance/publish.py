"""Put the result of a finished run beside this file and its tables into README.md.

python -m experiments.guidance.publish [outputs/guidance]

A run of some rows (``only=...``) replaces those rows and leaves the others as they are.
"""

import json
import re
import sys
from pathlib import Path

from experiments.guidance.tables import tables


def written(readme: str, result: dict) -> str:
    """A README with its tables made anew, between their markers."""
    made = f"<!-- tables -->\n{tables(result)}<!-- end -->"
    return re.sub(r"<!-- tables -->\n.*?<!-- end -->", lambda _: made, readme, flags=re.S)


def merged(old: dict, new: dict) -> dict:
    """A result with the rows of a newer one, which say at what revision they were made."""
    if not {row["row"] for row in old["rows"]} - {row["row"] for row in new["rows"]}:
        return new
    if (old["schema"], old["seeds"]) != (new["schema"], new["seeds"]):
        raise SystemExit("the rows were run with other seeds than the published ones: run them all")
    fresh = {row["row"]: {**row, "git": new["git"]} for row in new["rows"]}
    rows = [fresh.pop(row["row"], row) for row in old["rows"]]
    both = [*rows, *fresh.values()]
    tasks = {**old["tasks"], **new["tasks"]}
    # A new row comes after the older ones of its task.
    both.sort(key=lambda row: list(tasks).index(row["row"].partition("/")[0]))
    return {**old, "tasks": tasks, "labels": {**old["labels"], **new["labels"]}, "rows": both}


if __name__ == "__main__":
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/guidance")
    here = Path(__file__).parent
    published = here / "result.json"
    found = json.loads((run / "result.json").read_text())
    if published.is_file():
        found = merged(json.loads(published.read_text()), found)
    published.write_text(json.dumps(found, indent=1) + "\n")
    page = here / "README.md"
    page.write_text(written(page.read_text(), found))
