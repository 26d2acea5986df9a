"""README.md and docs/ against the code, and which way imports run."""

import ast
import importlib
import re
import subprocess
import sys

from helpers import ROOT, WAIT

import augment
import dataset
import predict
import train
from parts.options import settings_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
SCRIPTS = {"train.py": train, "augment.py": augment, "predict.py": predict, "dataset.py": dataset}


def constants(script):
    return vars(settings_of(vars(script), [], shared=vars(dataset)))


def test_the_constants_that_it_names_are_train_pys():
    rows = re.findall(r"^\| `([A-Z_]+)` \|", README, flags=re.M)
    assert len(rows) >= 10 and set(rows) <= set(constants(train))
    named = {name for script in SCRIPTS.values() for name in constants(script)}
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+)", README)) <= named


def test_every_flag_that_it_names_exists():
    known = {"--version", "--help", "--standalone", "--nproc_per_node"}
    for script in SCRIPTS.values():
        for name, value in constants(script).items():
            flag = name.lower().replace("_", "-")
            known |= {f"--{flag}"} | ({f"--no-{flag}"} if isinstance(value, bool) else set())
    assert set(re.findall(r"--[a-z][a-z_-]+", README)) <= known


def test_every_file_that_it_names_exists():
    for name in set(re.findall(r"`((?:parts/|benchmarks/)?[a-z_]+\.(?:py|md))`", README)):
        assert (ROOT / name).exists() or name == "mine.py", name  # that of the user
    for page in PAGES:
        for picture in re.findall(r"\]\(([a-z_/]+\.(?:png|jpg))\)", page.read_text(encoding="utf-8")):
            assert (page.parent / picture).exists(), picture


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


# ---- which way imports run

FLOORS = [  # each imports from those above it alone
    {"unet", "parts.errors", "parts.clean_up"},
    {"parts.own", "parts.bands", "parts.spec"},
    {"parts.rules"},
    {"parts.images", "parts.files", "parts.options", "parts.processes", "parts.networks", "parts.loggers"},
    {"parts.masks", "parts.names", "parts.cars", "parts.own_dataset"},
    {"parts.splits", "parts.file_facts", "parts.scores"}
    | {"parts.mask_rules", "parts.pictures", "parts.transforms", "parts.arrays", "parts.recipe", "parts.losses"},
    {"parts.audit", "parts.annotations", "parts.inference", "parts.checkpoint_keys", "parts.budget", "parts.advice"}
    | {"parts.endings", "parts.progress"},
    {"parts.checkpoints", "parts.truths"},
    {"dataset", "parts.folds", "parts.run_folder", "parts.export", "parts.predictions"},
    {"utils", "augment", "parts.outputs", "parts.output_folder"},
    {"predict"},
    {"train"},
]


def imported(path):
    """The modules of this repository that a file imports, at its top level or anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "parts" else [node.module]


def test_imports_run_one_way():
    modules = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
               for path in [*ROOT.glob("*.py"), *ROOT.glob("parts/*.py")] if path.stem != "__init__"}  # fmt: skip
    assert {name for floor in FLOORS for name in floor} == set(modules)
    for height, floor in enumerate(FLOORS):
        below = {name for lower in FLOORS[:height] for name in lower}
        for name in floor:
            ours = set(imported(modules[name])) & set(modules)
            assert ours <= below | ({"augment"} if name == "train" else set()), (name, ours - below)
            assert not name.startswith("parts.") or ours <= {n for n in below if n.startswith("parts.")} | {"unet"}


def test_files_are_looked_at_without_torch():
    """Which takes seconds to load in each process that decodes."""
    code = "import sys, parts.audit, parts.pictures, parts.cars; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=WAIT)


def test_every_function_that_how_it_works_names_exists():
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_]+)\.([A-Za-z_]+(?:\.[a-z_]+)?)`", text)
    assert len(named) > 40
    for module, name in named:
        if (module, name) in {("train", "py"), ("predict", "py")}:
            continue
        path = ROOT / f"{module}.py" if (ROOT / f"{module}.py").exists() else ROOT / "parts" / f"{module}.py"
        place = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for part in name.split("."):
            assert hasattr(place, part), f"{module}.{name}"
            place = getattr(place, part)
