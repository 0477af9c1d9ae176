"""The report of a benchmark: its tables, and a picture of them."""

from typing import Any

from matplotlib.figure import Figure

from mnist_lit.experiments.report import markdown

Spread = dict[str, float]
"""The median of some rounds, and the least and the most."""


def table(result: dict[str, Any]) -> str:
    """The measured parts as Markdown tables: medians, with the least and the most in brackets."""
    parts = []
    if rows := result.get("overhead"):
        head = f"{rows[0]['model']}, {rows[0]['image_size']} px: training, images a second, and a validation"
        cells = [["batch", "`mnist-lit fit`", "plain PyTorch loop", "ratio of a round", "validation, s"]]
        for row in rows:
            rates = [_write(row[key], ",.0f") for key in ("fit_images_per_s", "plain_images_per_s")]
            cells.append([f"{row['batch_size']:,}", *rates, _write(row["ratio"]), _write(row["validation_s"])])
        parts.append(f"{head}\n\n{markdown(cells)}")
    if ways := result.get("others"):
        cells = [[f"{ways['model']}, batches of {ways['batch_size']}", "images/s"]]
        cells += [[name, _write(rates, ",.0f")] for name, rates in ways["images_per_s"].items()]
        cells += [[f"{name}, times", _write(ratios, ".1f")] for name, ratios in ways["ratios"].items()]
        parts.append(markdown(cells))
    if seconds := result.get("growth"):
        cells = [["training images", "seconds an epoch", "microseconds an image"]]
        for images, measured in seconds.items():
            each = 1e6 * measured["median"] / int(images)
            cells.append([f"{int(images):,}", _write(measured), f"{each:.1f}"])
        parts.append(markdown(cells))
    if rows := result.get("processes"):
        cells = [["batch of each", "one process, one thread, images/s", "two of them", "ratio of a round"]]
        for row in rows:
            rates = [_write(row[key], ",.0f") for key in ("one_images_per_s", "two_images_per_s")]
            cells.append([str(row["batch_size"]), *rates, _write(row["ratio"])])
        parts.append(markdown(cells))
    if fits := result.get("recipes"):
        cells = [["whole fit", "epochs", "first step after, s", "bare import, s", "from then on, s", "memory, GB"]]
        cells[0].append("over 97.49 % after, s")
        for row in fits:
            promised = f"{row['promised_s']:.1f}" if row["promised_s"] is not None else "never"
            figures = [f"{row[key]:.1f}" for key in ("first_step_s", "bare_import_s", "fit_s")]
            cells.append([row["model"], str(row["epochs"]), *figures, f"{row['peak_memory_gb']:.2f}", promised])
        parts.append(markdown(cells))
    return "\n".join([*parts, result["environment"] + "\n"])


def figure(result: dict[str, Any]) -> Figure:
    """A panel a part: images a second by way to train and by batch size, seconds by number of images."""
    panels = [part for part in ("others", "overhead", "growth") if part in result]
    picture = Figure(figsize=(4.6 * max(len(panels), 1), 3.4), layout="constrained")
    for axes, part in zip(picture.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False):
        axes.grid(alpha=0.3)
        if part == "others":
            rates = result[part]["images_per_s"]
            axes.barh(list(rates), [rate["median"] for rate in rates.values()], xerr=_errors(list(rates.values())))
            axes.invert_yaxis()
            axes.set(xlabel="images/s", title="ways to train")
        elif part == "overhead":
            sizes = [str(row["batch_size"]) for row in result[part]]
            for key, label in (("plain_images_per_s", "plain loop"), ("fit_images_per_s", "mnist-lit fit")):
                rates = [row[key] for row in result[part]]
                axes.errorbar(sizes, [rate["median"] for rate in rates], yerr=_errors(rates), fmt=".-", label=label)
            axes.set(xlabel="batch", ylabel="images/s", ylim=(0, None), title="by batch size")
            axes.legend()
        else:
            images = [int(count) / 1000 for count in result[part]]
            seconds = list(result[part].values())
            axes.errorbar(images, [each["median"] for each in seconds], yerr=_errors(seconds), fmt=".-")
            axes.set(xlabel="thousand training images", ylabel="seconds an epoch", title="by amount of data")
            axes.set(xlim=(0, None), ylim=(0, None))
    return picture


def _write(values: Spread, form: str = ".2f") -> str:
    return f"{values['median']:{form}} ({values['min']:{form}} to {values['max']:{form}})"


def _errors(spreads: list[Spread]) -> list[list[float]]:
    """Distances of the least and the most from the median, as matplotlib draws them."""
    below = [values["median"] - values["min"] for values in spreads]
    return [below, [values["max"] - values["median"] for values in spreads]]
