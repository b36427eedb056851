"""Print the parity table of the README: `make parity`."""

import tempfile
from pathlib import Path

import torch

import test_huggingface as hf
from perceivers.pretrained.conversion import from_huggingface
from perceivers.systems import PRESETS
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


def show(rows, against):
    for name, outputs, expected in rows:
        assert outputs.keys() == expected.keys()
        elements = sum(array.numel() for array in expected.values())
        worst = max(relative_error(output, expected[key]) for key, output in outputs.items())
        print(f"| {name} | {elements:,} | {worst:.1e} | {against} |")


def main():
    print("| model | elements compared | worst relative error | against |")
    print("| --- | ---: | ---: | --- |")
    show(recorded_rows(), "DeepMind's code, tiny size, recorded")
    show(huggingface_rows(), "transformers with its own numbers, tiny size")


if __name__ == "__main__":
    main()
