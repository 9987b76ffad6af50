"""Serves a page on which a trained LSTM reads what you draw.

Example: python -m experiments.draw --workdir=runs/RUN
"""

from absl import flags

from experiments import command_line
from experiments.shared_flags import (
    define_mnist_folders,
    define_step,
    define_workdir_of_a_run,
)

define_workdir_of_a_run()
define_step()
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
flags.DEFINE_integer(
    "port", 8128, "Port to listen on; 0 takes a free one.", lower_bound=0,
    upper_bound=65535,
)  # fmt: skip
flags.DEFINE_multi_string(
    "allow_host",
    [],
    "A host name by which browsers may request the page, besides --host and the local "
    "names (localhost, …); may be repeated.",
)
define_mnist_folders()

FLAGS = flags.FLAGS


def main() -> None:
    # After the flags are parsed, so that `--help` and a mistyped flag answer at once.
    from experiments import restored
    from experiments.data import mnist
    from experiments.errors import RunError

    try:
        from experiments.draw import app, reader, server
    except ModuleNotFoundError as error:
        if error.name not in ("flask", "werkzeug"):
            raise
        raise RunError(
            "needs Flask, which can't be imported here; install it with "
            "`pip install -e '.[draw]'`"
        ) from error

    app.require_host("--host", FLAGS.host)
    for host in FLAGS.allow_host:
        app.require_host("--allow_host", host)
    mnist.require_manual_dir(FLAGS.manual_dir)
    classifier = restored.restore(FLAGS.workdir, FLAGS.step)
    reader.require_readable(classifier)  # Before a dataset is prepared for nothing.
    digits = reader.find_test_digits(classifier, FLAGS.data_dir, FLAGS.manual_dir)
    reading = reader.Reader(classifier, digits)
    page = app.create_app(reading, [FLAGS.host, *FLAGS.allow_host])
    print(classifier.description)
    if isinstance(digits, str):
        print(f"No test digits: {digits}")
    server.serve(page, FLAGS.host, FLAGS.port)


if __name__ == "__main__":
    command_line.run(main)
