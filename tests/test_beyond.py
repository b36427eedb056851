"""The page docs/beyond.md: its configs run, its file is valid, its table is the planner's; names stay out of core."""

import re
from pathlib import Path

import pytest

from perceivers.core.fast import options

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "beyond.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_configs_of_the_page_run() -> None:
    names: dict[str, object] = {}
    assert len(blocks("python")) >= 7
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), names)


def test_the_file_of_the_page_is_valid(command, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (file,) = blocks("yaml")
    Path("spikes.yaml").write_text(file)
    spike = '{"unit": 3, "type": 1, "time": 0.25}'
    Path("spikes.jsonl").write_text(f'{{"spikes": [{spike}, {spike}], "choice": 1}}\n' * 4)
    code, out, errors = command("schema", "check", "spikes.yaml")
    assert code == 0, errors
    assert "16" in out


def test_the_table_of_the_page_is_that_of_the_planner() -> None:
    shown = re.search(r"<!-- options -->\n(.*?)\n<!-- end of options -->", PAGE.read_text(), re.DOTALL)
    assert shown is not None
    assert shown.group(1) == options.table()


@pytest.mark.parametrize("name", ["poyo", "vecset", "flamingo", "idefics"])
def test_core_knows_no_names_of_others(name: str) -> None:
    for path in (ROOT / "src" / "perceivers" / "core").rglob("*.py"):
        assert name not in path.read_text().lower(), path
