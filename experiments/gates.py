"""Draws how a trained LSTM reads one digit, row by row.

Example: python -m experiments.gates --workdir=runs/RUN --index=7
"""

from experiments import command_line, one_digit
from experiments.errors import naming

one_digit.define_flags()


def main() -> None:
    classifier = one_digit.restore()

    # After the flags are parsed, so that `--help` and a mistyped flag answer at once.
    from experiments import reading
    from experiments.pictures.gates import save_gates

    reading.require_rows_and_lstm(classifier)
    path = one_digit.picture_path(classifier, prefix="gates-")
    shown = one_digit.predict(classifier)
    read = reading.read(
        classifier.model, classifier.variables, shown.image, shown.white
    )
    print(f"{classifier.description}\n{shown.text()}", flush=True)
    with naming("--output"):
        save_gates(read, shown, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    command_line.run(main)
