"""One part in a process of its own: child.py PART OPTIONS.json RESULT.json. What it prints is the part's log."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from selftest.options import Options, open_paths


def main(part: str, options_file: Path, result_file: Path) -> int:
    """Run the part and write what it found."""
    options = Options.load(options_file)
    open_paths(options)
    try:
        if part == "sanitized":
            found = importlib.import_module("selftest.sanitizer").sanitized(options)
        else:
            found = importlib.import_module(f"selftest.{part}").run(options)
    except Exception as error:
        traceback.print_exc()
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"[:2000]}
    temporary = result_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(found), encoding="utf-8")
    temporary.replace(result_file)
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
