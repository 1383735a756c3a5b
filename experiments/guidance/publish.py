"""Put the result of a finished run beside this file and its tables into README.md.

python experiments/guidance/publish.py [outputs/guidance]
"""

import json
import re
import sys
from pathlib import Path

from adjointdeis.harness.bench.document import tables


def written(readme: str, result: dict) -> str:
    """A README with its tables made anew, between their markers."""
    made = f"<!-- tables -->\n{tables(result)}<!-- end -->"
    return re.sub(r"<!-- tables -->\n.*?<!-- end -->", lambda _: made, readme, flags=re.S)


if __name__ == "__main__":
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/guidance")
    here = Path(__file__).parent
    found = json.loads((run / "result.json").read_text())
    (here / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    page = here / "README.md"
    page.write_text(written(page.read_text(), found))
