"""README.md against the code."""

import re

from conftest import ROOT

from settings import _constants

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_constants_is_train_pys():
    rows = re.findall(r"^\| `([A-Z_]+)` \| `(.*?)` \| (.*) \|$", README, flags=re.M)
    constants = _constants((ROOT / "train.py").read_text(encoding="utf-8"))
    assert rows == [(name, repr(value), reason.replace("|", "/")) for name, (value, _, reason) in constants.items()]


def test_every_flag_that_it_names_exists():
    known = {"--version", "--help", "--standalone", "--nproc_per_node"}
    for script in ("train.py", "augment.py", "predict.py", "dataset.py", "demo.py"):
        for name, (value, _, _) in _constants((ROOT / script).read_text(encoding="utf-8")).items():
            flag = name.lower().replace("_", "-")
            known |= {f"--{flag}"} | ({f"--no-{flag}"} if isinstance(value, bool) else set())
    assert set(re.findall(r"--[a-z][a-z_-]+", README)) <= known


def test_every_file_that_it_names_exists():
    for name in set(re.findall(r"`([a-z_]+\.py)`", README)):
        assert (ROOT / name).exists(), name
    for picture in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (ROOT / picture).exists(), picture


def test_every_module_is_named_there():
    for path in ROOT.glob("*.py"):
        assert path.name in README, path.name
