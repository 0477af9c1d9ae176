from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from mnist_lit import UserError
from mnist_lit.experiments.plans import plan_folder
from mnist_lit.experiments.recipes import Recipe


def plan(root: Path, content: dict[str, Any], resume: bool = False) -> Path:
    given = ["a.yaml", *(["--resume"] if resume else [])]
    recipe = Recipe("a", [], {"trainer": {"default_root_dir": str(root)}})
    return plan_folder("compare", Namespace(given=given, seeds=1, resume=resume), recipe, content)


def test_resume_finds_the_newest_folder_with_the_same_plan(tmp_path: Path) -> None:
    folders = [plan(tmp_path, {"lr": lr}) for lr in [0.1] * 10 + [0.2]]
    assert folders == [tmp_path / f"lightning_logs/compare/version_{number}" for number in range(11)]
    assert plan(tmp_path, {"lr": 0.1}, resume=True) == folders[9]
    assert plan(tmp_path, {"lr": 0.2}, resume=True) == folders[10]
    assert plan(tmp_path, {"lr": 0.1}) == folders[0].with_name("version_11")


def test_resume_with_another_plan_names_the_command_of_the_newest(tmp_path: Path) -> None:
    plan(tmp_path, {"lr": 0.1})
    with pytest.raises(UserError, match=r"version_0 was started by `mnist-lit compare a\.yaml`"):
        plan(tmp_path, {"lr": 0.2}, resume=True)


def test_resume_without_any_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        plan(tmp_path, {}, resume=True)
    assert list(tmp_path.iterdir()) == []
