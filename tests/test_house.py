"""Rules of the house: which way imports go, where Ray and broad excepts may stand, and what no file may contain."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEE_NOT_FROM_PIPELINE = {"stages", "torch", "torchvision", "open_clip", "PIL", "cv2", "simplejpeg"}
MAY_CATCH_ALL = {"pipeline/batches.py", "pipeline/part.py"}


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """(path from the root, syntax tree) of every Python file of some folders."""
    for folder in folders:
        files = sorted((ROOT / folder).rglob("*.py"))
        assert files, f"{folder} has no Python file"
        for file in files:
            yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> set[str]:
    """Top-level packages that a module imports anywhere in it, also in functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test sees where they lead"
            found.add(str(node.module).partition(".")[0])
    return found


def test_schemas_import_pyarrow_and_the_standard_library_only() -> None:
    allowed = {*sys.stdlib_module_names, "pyarrow", "schemas"}
    assert {path: wrong for path, tree in sources("schemas") if (wrong := imported(tree) - allowed)} == {}


def test_pipeline_imports_no_stage_no_torch_and_no_image_library() -> None:
    assert {path: wrong for path, tree in sources("pipeline") if (wrong := imported(tree) & SEE_NOT_FROM_PIPELINE)} == {}


def test_ray_is_imported_in_three_modules_only() -> None:
    found = [path for path, tree in sources("schemas", "pipeline", "stages") if "ray" in imported(tree)]
    assert found == ["pipeline/ray_executor.py", "pipeline/ray_models.py", "pipeline/ray_session.py"]


BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError("ray is blocked", name=name)
sys.meta_path.insert(0, Blocked())
"""


def test_stages_trainer_and_run_import_without_ray() -> None:
    code = BLOCKER + "import stages.download, stages.clip_score, stages.pretrain.trainer, pipeline.run\nassert 'ray' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKER + "import pipeline.ray_executor"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "ray is blocked" in done.stderr


def repository_files() -> list[Path]:
    """Files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


def test_no_file_names_a_machine_path_or_a_registry() -> None:
    # Put together here, so that this file does not contain them.
    forbidden = [b"/wor" + b"k/", b"pypi" + b".org", b"pythonhosted" + b".", b"npmjs" + b"."]
    files = repository_files()
    assert ROOT / "pyproject.toml" in files
    found = [(str(file.relative_to(ROOT)), text) for file in files for text in forbidden if text in file.read_bytes()]
    assert found == []


def broad_handlers(tree: ast.AST) -> Iterator[ast.ExceptHandler]:
    """Handlers that swallow any exception: bare, or of Exception or BaseException, without raising at their end.

    A handler of BaseException that cleans up and raises again is none; one of Exception is one in any case.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        named = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
        names = {name.id if isinstance(name, ast.Name) else "" for name in named if name is not None}
        raises_again = isinstance(node.body[-1], ast.Raise)
        if "Exception" in names or (not raises_again and (node.type is None or "BaseException" in names)):
            yield node


def test_broad_excepts_stand_where_rows_are_isolated_and_nowhere_else() -> None:
    found = {path for path, tree in sources("schemas", "pipeline", "stages", "docs/examples") if list(broad_handlers(tree))}
    assert found == MAY_CATCH_ALL


@pytest.mark.parametrize(
    ("handler", "broad"),
    [
        ("except Exception: raise", True), ("except (OSError, Exception): pass", True), ("except: pass", True),
        ("except BaseException: pass", True), ("except BaseException: raise", False), ("except OSError: pass", False),
    ],
)  # fmt: skip
def test_what_counts_as_a_broad_except(handler: str, broad: bool) -> None:
    assert bool(list(broad_handlers(ast.parse(f"try: pass\n{handler}")))) is broad
