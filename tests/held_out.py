"""Scores of a run, recomputed from its predictions as a user gets them."""

from perceivers.runs.prediction import predict_rows
from perceivers.runs.run import Run


def accuracy_of(run, output):
    """Return the fraction of held-out records whose label is predicted correctly; unknown labels do not count."""
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
