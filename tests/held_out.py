"""Scores of a run, made again from its predictions as a user has them."""

from perceivers.runs.prediction import predict_rows
from perceivers.runs.run import Run


def accuracy_of(run, output):
    """Share of the held-out records whose label is predicted as it is; unknown ones do not count."""
    run = Run(run)
    model, records = run.model, list(run.held_out)
    spec = model.schema.outputs[output]
    right = []
    for row, record in zip(predict_rows(model.eval(), records, 7), records, strict=True):
        true = record[spec.key or output]
        if true is not None:
            right.append(row[output] == (str(true) if isinstance(true, str) else spec.name_of(int(true))))
    assert right
    return sum(right) / len(right)
