"""The real TensorBoard shows a run's curves, pictures, hyper-parameters and graph."""

from pathlib import Path

import pytest
import torch
from helpers.commands import SMALL, WATCH_TEST, Main, equal_weights
from helpers.tensorboard import Server
from matplotlib.figure import Figure

from mnist_lit.callbacks import figures
from mnist_lit.callbacks.drawings import WIDTH, draw_accuracy, draw_confusion, draw_misread
from mnist_lit.run.lightning_cli import run


def test_tensorboard_shows_the_run(main: Main) -> None:
    main(
        f"fit {WATCH_TEST} --trainer.callbacks=EMAWeightAveraging --trainer.max_epochs=3 --trainer.log_every_n_steps=2"
    )
    main("test --ckpt_path last")
    name = "ds_cnn_v1/version_0"
    with Server() as server:
        tags = server.wait("scalars/tags", lambda tags: "recall/9" in tags.get(name, {}))
        assert list(tags) == [name]
        curves = {f"{kind}/{split}" for split in ("train", "val", "test") for kind in ("accuracy", "loss")}
        assert curves | {"lr-AdamW"} <= set(tags[name])
        assert "hp_metric" not in tags[name]

        def points(tag: str) -> list[list[float]]:
            answer: list[list[float]] = server.get(f"scalars/scalars?run={name}&tag={tag}")
            return [[step, value] for _, step, value in answer]

        steps = [4, 9, 14]  # the last of each epoch's five, counted from 0
        assert [step for step, _ in points("accuracy/train")] == steps
        assert [step for step, _ in points("accuracy/val")] == steps
        test = points("accuracy/test")
        assert [step for step, _ in test] == [*steps, 14]  # of fit, and then of test
        assert test[-1] == test[-2]
        assert points("loss/test")[-1] == points("loss/test")[-2]  # fit has measured the averaged weights, too
        assert len(points("lr-AdamW")) >= 7

        layout = server.wait("custom_scalars/layout", bool)
        assert [category["title"] for category in layout["category"]] == [
            "accuracy, not smoothed",
            "loss, not smoothed",
        ]
        for chart, stage in zip(layout["category"][0]["chart"], ("test", "val", "train"), strict=True):
            assert chart["margin"]["series"] == [dict.fromkeys(("value", "lower", "upper"), f"accuracy/{stage}")]

        experiment = server.get("hparams/experiment", {})
        columns = {"Model": "DS_CNN_V1", "learning rate, batch size, seed": "0.02, 50, 42", "parameters": "5,226"}
        assert {info["name"] for info in experiment["hparamInfos"]} == columns.keys()
        metrics = [info["name"] for info in experiment["metricInfos"]]
        assert [metric["tag"] for metric in metrics] == ["accuracy/val", "accuracy/test"]
        request = {
            "colParams": [{"metric": metric} for metric in metrics],
            "startIndex": 0,
            "sliceSize": 10,
            "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN", "STATUS_FAILURE"],
        }
        (group,) = server.get("hparams/session_groups", request)["sessionGroups"]
        assert group["hparams"] == columns
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert values == {"accuracy/val": points("accuracy/val")[-1][1], "accuracy/test": test[-1][1]}

        drawn = {"accuracy", "confusion_matrix", "filters", "misread", "network_input"}
        assert server.get("images/tags")[name].keys() == {f"pictures/{picture}" for picture in drawn}
        for picture, its_steps in {"filters": [0, 15], "accuracy": [14, 15]}.items():  # before and after fit or test
            images = server.get(f"images/images?run={name}&tag=pictures/{picture}&sample=0")
            assert [image["step"] for image in images] == its_steps
        by_digit = sorted(server.get("pr_curves/tags")[name])
        assert [tag[-1] for tag in by_digit] == list("0123456789")
        (curve,) = server.get(f"pr_curves/pr_curves?run={name}&tag={by_digit[3]}")[name]
        assert max(curve["recall"]) == 1
        assert curve["true_positives"][0] == 10  # of 100 test images
        (card,) = server.get(f"text/text?run={name}&tag=run/text_summary")
        for fact in ("DS_CNN_V1", "5,226", "multiply-adds", "250", "torch"):
            assert fact in card["text"]
        assert "block1" in str(server.get(f"graphs/graph?run={name}"))


def test_texts_of_pictures_are_whole_and_large_at_the_size_of_a_card() -> None:
    labels = torch.arange(10).repeat_interleave(1131)  # as many as the commonest digit of the test set
    probabilities = torch.eye(10)[labels.roll(9)]
    misread = torch.zeros(90, 1, 28, 28, dtype=torch.uint8)
    curves = {stage: [(1.0, 1.0)] for stage in ("train", "val", "test")}
    drawn = (draw_confusion(labels, probabilities), draw_misread(labels, probabilities, misread), draw_accuracy(curves))
    for figure in drawn:
        figure.draw_without_rendering()
        texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
        for axes in figure.axes:
            texts += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        boxes = {text: text.get_window_extent() for text in texts if text.get_text()}
        assert boxes
        for text, box in boxes.items():
            assert float(text.get_fontsize()) >= 24, text
            assert sum(map(box.overlaps, boxes.values())) == 1, text  # itself
            assert min(box.x0, box.y0, WIDTH - box.x1, figure.bbox.y1 - box.y1) > -1, text


def test_accuracy_is_drawn_by_epoch(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, list[tuple[float, float]]]] = []

    def record(curves: dict[str, list[tuple[float, float]]]) -> Figure:
        drawn.append(curves)
        return Figure()

    monkeypatch.setattr(figures, "draw_accuracy", record)
    main("fit --trainer.max_epochs=2 --trainer.val_check_interval=0.5")
    main("test --ckpt_path last")
    trained, tested = drawn
    assert {stage: [epoch for epoch, _ in curve] for stage, curve in tested.items()} == {
        "train": [1, 2],
        "val": [0.4, 0.8, 1.4, 1.8],  # after two and four of five steps
        "test": [2],
    }
    assert trained == {stage: tested[stage] for stage in ("train", "val")}


def test_pictures_change_no_weights(tiny_mnist: Path, tmp_path: Path) -> None:
    args = ["fit", *SMALL, f"--data.data_dir={tiny_mnist}", f"--trainer.default_root_dir={tmp_path}"]
    args.append("--model.augment=helpers.user_code.Noise")  # draws for the pictures as well
    with_pictures, without = run(args), run([*args, "--trainer.logger=false"])
    assert equal_weights(with_pictures.model.state_dict(), without.model.state_dict())
