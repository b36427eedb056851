"""Prints the parity table of the README: `make parity`."""

import torch

from reference_files import read, relative_error, under
from test_convert import ASK, RECORDED, ask_imagenet, built, converted


def rows():
    """Model, output elements compared, worst relative error."""
    for name, (preset, _) in RECORDED.items():
        recorded = read(name)
        with torch.no_grad():
            outputs = ASK.get(name, ask_imagenet)(built(*converted(name)), under("in:", recorded))
        expected = under("out:", recorded)
        assert outputs.keys() == expected.keys()
        elements = sum(array.numel() for array in expected.values())
        worst = max(relative_error(output, expected[key]) for key, output in outputs.items())
        yield preset, elements, worst


def main():
    print("| model | elements compared | worst relative error | against |")
    print("| --- | ---: | ---: | --- |")
    for preset, elements, worst in rows():
        print(f"| {preset} | {elements:,} | {worst:.1e} | DeepMind's code, tiny size, recorded |")


if __name__ == "__main__":
    main()
