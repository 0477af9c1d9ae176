import json
from collections.abc import Callable
from pathlib import Path

import pytest

Main = Callable[[str], None]


@pytest.mark.slow
def test_the_benchmark_measures_both_loops(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = "--trainer.accelerator=cpu --trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
    main(f"benchmark --rounds=2 --batches=4 --data.source=sample --data.batch_size=64 {quiet}")
    result = json.loads(Path("lightning_logs/benchmark/speed.json").read_text())
    assert (result["model"], result["batch_size"], result["image_size"]) == ("DS_CNN_V1", 64, 28)
    assert len(result["fit_images_per_s"]) == len(result["plain_images_per_s"]) == len(result["ratios"]) == 2
    assert all(rate > 0 for rate in result["fit_images_per_s"] + result["plain_images_per_s"])
    assert all(0 < share < 1 for share in result["preprocessing_shares"])
    assert 0.3 < result["peak_memory_gb"] < 4
    assert "| plain PyTorch loop" in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == ["data", "lightning_logs"]
