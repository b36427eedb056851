"""Print the parity table of the README: `make parity`."""

import tempfile
from pathlib import Path

import torch

import test_huggingface as hf
import test_relatives as relatives
from perceivers import from_state_dict
from perceivers.pretrained.conversion import from_huggingface
from perceivers.systems import PRESETS
from proof import write_section
from reference_files import read, relative_error, under
from test_convert import ASK, RECORDED, ask_imagenet, built, converted


def recorded_rows():
    """Yield the name, outputs and recorded outputs of DeepMind's tiny models."""
    for name, (preset, _) in RECORDED.items():
        recorded = read(name)
        with torch.no_grad():
            outputs = ASK.get(name, ask_imagenet)(built(*converted(name)), under("in:", recorded))
        yield preset, outputs, under("out:", recorded)


def huggingface_rows():
    """Yield name, our outputs and theirs of tiny random models of transformers, ours with its numerics."""
    for family in hf.CLASSES:
        torch.manual_seed(0)
        model = hf.their_model(family, hf.TINY[family])
        with tempfile.TemporaryDirectory() as folder:
            weights, config = hf.saved(model, Path(folder))
            preset, ours = from_huggingface(PRESETS[family].preset(), weights, config)
        question = hf.question_for(family, model.config, hf.size_of(family))
        outputs = hf.our_outputs(preset, ours, family, question)
        theirs = hf.their_outputs(model, family, question)
        # Their class decodes all positions of a text of the maximum length.
        cut = {name: x[:, : outputs[name].shape[1]] if x.ndim == 3 else x for name, x in theirs.items()}
        yield family, outputs, cut


def recorded_relatives_rows():
    """Yield name, outputs and recorded outputs of POYO and 3DShape2VecSet."""
    for name in relatives.SETTINGS:
        recorded, model = read(name), relatives.converted(name)
        raw, points = relatives.question(name, under("in:", recorded))
        with torch.no_grad():
            encoded = model.encode(raw)
            (y,) = model.decode(encoded, points).values()
        outputs = {"y": y}
        if encoded.posterior is not None:
            posterior = encoded.posterior
            outputs |= {"mean": posterior.mean, "logvar": posterior.log_variance, "kl": posterior.kl()}
        expected = under("out:", recorded)
        expected.pop("latents", None)  # between the stages
        yield name, outputs, expected


def live_resamplers_rows():
    """Yield name, our outputs and theirs of random resamplers, with masks where theirs takes one."""
    torch.manual_seed(0)
    sizes = relatives.IDEFICS["grouped heads"]
    theirs, tokens = relatives.their_idefics2(sizes), torch.randn(3, 13, sizes["hidden_size"])
    mask = torch.rand(3, 13) > 0.4
    with torch.no_grad():
        ours = from_state_dict("idefics2", theirs.state_dict(), **relatives.settings_of(sizes))
        yield "idefics2", {"y": ours(tokens, mask)}, {"y": theirs(tokens, mask.long())}
        sizes = relatives.FLAMINGOS["small"]
        theirs, tokens = relatives.their_flamingo(sizes), torch.randn(2, 3, 11, sizes["dim"])
        ours = from_state_dict("flamingo", theirs.state_dict(), **relatives.heads_of(sizes))
        yield "flamingo", {"y": ours(tokens)}, {"y": theirs(tokens)}


THEIRS = {
    "poyo": "torch_brain, tiny size, recorded",
    "vecset": "3DShape2VecSet, tiny size, recorded",
    "vecset_kl": "3DShape2VecSet, tiny size, recorded",
    "idefics2": "transformers, tiny size, side by side",
    "flamingo": "flamingo-pytorch, tiny size, side by side",
}
"""What the models of other libraries are compared with."""


def rows_of(found, against=""):
    """Yield a row of the table for each model."""
    for name, outputs, expected in found:
        assert outputs.keys() == expected.keys()
        elements = sum(array.numel() for array in expected.values())
        worst = max(relative_error(output, expected[key]) for key, output in outputs.items())
        yield f"| {name} | {elements:,} | {worst:.1e} | {against or THEIRS[name]} |"


def main():
    lines = [
        "| model | elements compared | worst relative error | against |",
        "| --- | ---: | ---: | --- |",
        *rows_of(recorded_rows(), "DeepMind's code, tiny size, recorded"),
        *rows_of(huggingface_rows(), "transformers with its own numbers, tiny size"),
        *rows_of(recorded_relatives_rows()),
        *rows_of(live_resamplers_rows()),
    ]
    print("\n".join(lines))
    about = "By `make parity` on {date}. All elements of all outputs are compared, relative to the largest."
    write_section("Parity", "\n".join([about, "", *lines]))


if __name__ == "__main__":
    main()
