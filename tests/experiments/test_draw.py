"""The drawing page's server, asked without a socket where possible."""

import base64
import contextlib
import dataclasses
import http.client
import io
import re
import signal
import socket
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from commands import arguments, assert_one_line_error, command
from PIL import Image, ImageDraw

pytest.importorskip("flask", reason="the page is served by Flask")

from experiments import answers
from experiments.data import choose, digits, mnist
from experiments.draw import server
from experiments.draw.app import MAX_BODY, create_app, require_host
from experiments.draw.reader import HARDEST, Reader, find_test_digits
from experiments.errors import RunError
from experiments.reading import LayerTrace, read
from experiments.restored import restore
from flax_lstm import load_classifier

PNG = {"content_type": "image/png"}


@pytest.fixture(scope="module")
def classifier(trained):
    return restore(str(trained[0]))


@pytest.fixture(scope="module")
def reader(classifier):
    return Reader(classifier, digits.load())


@pytest.fixture(scope="module")
def client(reader):
    return create_app(reader, ["127.0.0.1"]).test_client()


@pytest.fixture(scope="module")
def logits(trained):
    """Of the test digits, as a user of the library would compute them."""
    model, variables = load_classifier(trained[0])
    images = digits.load().test.images.astype(np.float32) / digits.WHITE
    return np.asarray(model.apply(variables, images))


def picture(draw=True, size=(140, 140), kind="PNG"):
    image = Image.new("L", size, 255)
    if draw:
        ImageDraw.Draw(image).ellipse((45, 25, 95, 115), outline=0, width=12)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_a_test_digit_is_read_row_by_row(client, logits):
    test = digits.load().test
    for index in (0, 3, 359):
        answer = client.get(f"/api/test/{index}").json
        assert (answer["index"], answer["label"]) == (index, test.labels[index])
        assert answer["answer"] == logits[index].argmax()
        probabilities = np.array(answer["probabilities"])
        assert probabilities.shape == (8, 10)
        expected = np.exp(logits[index]) / np.exp(logits[index]).sum()
        # Four decimals are sent.
        np.testing.assert_allclose(probabilities[-1], expected, atol=1e-4)
        image = np.frombuffer(base64.b64decode(answer["image"]), np.uint8)
        np.testing.assert_array_equal(
            image, np.rint(test.images[index].ravel() / digits.WHITE * 255)
        )


def test_probabilities_are_sent_with_four_decimals(client):
    rows = client.get("/api/test/0").json["probabilities"]
    assert max(len(str(p)) for row in rows for p in row) == len("0.1234")


def of_bytes(text):
    return np.frombuffer(base64.b64decode(text), np.uint8)


def test_gates_and_cell_state_of_every_layer_come_along(client, classifier):
    layers = client.get("/api/test/0").json["layers"]
    assert [layer["name"] for layer in layers] == ["layer_0", "layer_1"]
    image = digits.load().test.images[0]
    reading = read(classifier.model, classifier.variables, image, digits.WHITE)
    for layer, trace in zip(layers, reading.layers, strict=True):
        order = trace.units_by_peak()
        for gate in "ifo":
            expected = 255 * getattr(trace, gate)[:, order].ravel()
            np.testing.assert_allclose(of_bytes(layer[gate]), expected, atol=0.51)
        # Of the cell states 1 % are beyond the limit.
        states = trace.c[:, order].ravel() / layer["limit"]
        assert (abs(states) > 1.01).any()
        expected = 255 * (np.clip(states, -1, 1) + 1) / 2
        np.testing.assert_allclose(of_bytes(layer["c"]), expected, atol=1)


def test_a_layer_that_keeps_nothing_is_in_the_middle_of_the_scale(reader):
    nothing = np.zeros((8, 4), np.float32)
    layer = reader._layer(LayerTrace("layer_0", nothing, nothing, nothing, nothing))
    assert layer["limit"] == 1
    assert set(of_bytes(layer["c"])) == {128}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_drawing_is_read_as_predict_reads_it(client, classifier, tmp_path, kind):
    path = tmp_path / "digit"
    path.write_bytes(picture(kind=kind))
    mime = f"image/{kind.lower()}"
    response = client.post("/api/read", data=path.read_bytes(), content_type=mime)
    assert response.status_code == 200
    shown = classifier.predict_image(str(path))
    assert response.json["answer"] == shown.answer == 0
    assert "label" not in response.json
    np.testing.assert_allclose(
        response.json["probabilities"][-1], shown.probabilities, atol=1e-4
    )


def test_the_hardest_are_those_of_the_largest_loss(client, logits):
    labels = digits.load().test.labels
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    hardest = client.get("/api/hardest").json
    assert [hard["index"] for hard in hardest] == np.argsort(-losses)[:HARDEST].tolist()
    for hard in hardest:
        index = hard["index"]
        probabilities = np.exp(logits[index]) / np.exp(logits[index]).sum()
        assert hard["label"] == labels[index]
        assert hard["answer"] == probabilities.argmax()
        assert hard["probability"] == pytest.approx(probabilities.max(), abs=1e-5)
        assert hard["image"] == client.get(f"/api/test/{index}").json["image"]


def test_the_hardest_are_looked_for_once(classifier, monkeypatch):
    asked, answer_all = [], answers.answer_all

    def slowly(*arguments):
        asked.append(arguments)
        time.sleep(0.2)
        return answer_all(*arguments)

    monkeypatch.setattr(answers, "answer_all", slowly)
    reader = Reader(classifier, digits.load())
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: reader.hardest(), range(2))
    assert first == second
    assert len(asked) == 1


def test_the_digits_of_a_validated_run_are_those_held_out(classifier):
    validated = dataclasses.replace(classifier, validated=True)
    data = find_test_digits(validated, None, None)
    held_out = digits.load().validating().test
    np.testing.assert_array_equal(data.test.images, held_out.images)


@pytest.mark.parametrize(("name", "asked"), [("mnist", []), ("digits", ["digits"])])
def test_why_there_are_no_test_digits(classifier, monkeypatch, name, asked):
    """Without a network MNIST is not even tried: TFDS would for minutes."""
    tried = []

    def load(name, *_, **__):
        tried.append(name)
        raise RunError("no network")

    monkeypatch.setattr(mnist, "why_unavailable", lambda *_: "no network")
    monkeypatch.setattr(choose, "load", load)
    why = find_test_digits(dataclasses.replace(classifier, dataset=name), None, None)
    assert "no network" in why
    assert tried == asked


def test_the_page_says_what_the_model_was_trained_on(client):
    about = client.get("/api/model").json
    assert about["embedded"] is True
    assert (about["side"], about["tests"], about["testsMissing"]) == (8, 360, None)
    assert (about["layers"], about["units"], about["epoch"]) == (2, 128, 20)
    assert (about["directions"], about["classes"]) == (1, 10)


def test_without_test_digits_a_drawing_is_read_all_the_same(classifier):
    client = create_app(Reader(classifier, "no network"), []).test_client()
    assert client.get("/api/model").json["testsMissing"] == "no network"
    assert client.get("/api/hardest").json == []
    response = client.get("/api/test/0")
    assert (response.status_code, response.json) == (
        404,
        {"error": "no test digits: no network"},
    )
    assert client.post("/api/read", data=picture(), **PNG).json["answer"] == 0


def test_the_page_fetches_nothing_from_elsewhere(client):
    for path in (
        "/",
        "/page/draw.js",
        "/page/pad.js",
        "/page/maps.js",
        "/page/draw.css",
    ):
        response = client.get(path)
        assert response.status_code == 200
        assert not re.search(r"(https?:)?//[\w.]+\.\w", response.text), path
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/", "/page/draw.js", "/api/model", "/none"])
def test_every_answer_is_for_this_page_alone(client, path):
    headers = client.get(path).headers
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"


REFUSED = {
    "text": ({"data": b"hello", **PNG}, 422, "expected a PNG or JPEG"),
    "nothing": ({"data": b"", **PNG}, 422, "expected a PNG or JPEG"),
    "cut short": ({"data": picture()[:-60], **PNG}, 422, "expected a PNG or JPEG"),
    "blank": ({"data": picture(draw=False), **PNG}, 422, "got a uniform picture"),
    "too many pixels": (
        {"data": picture(draw=False, size=(9000, 9000)), **PNG},
        422,
        "expected at most 64,000,000 pixels",
    ),
    "other type": ({"data": b"{}", "content_type": "text/json"}, 415, "Content-Type:"),
    "no type": ({"data": picture()}, 415, "expected image/png or image/jpeg"),
    "as large as may be": (
        {"data": bytes(MAX_BODY), **PNG},
        422,
        "expected a PNG or JPEG",
    ),
    "too large": (
        {"data": bytes(MAX_BODY + 1), **PNG},
        413,
        "at most 12,582,912 bytes",
    ),
    "other page": (
        {"data": picture(), **PNG, "headers": {"Origin": "http://evil.example"}},
        403,
        "Origin: expected localhost, got http://evil.example",
    ),
    "no page": (
        {"data": picture(), **PNG, "headers": {"Origin": "null"}},
        403,
        "Origin:",
    ),
    "no address": (
        {"data": picture(), **PNG, "headers": {"Origin": "http://[x"}},
        403,
        "Origin: expected localhost, got http://[x",
    ),
    "in chunks": (
        {
            "input_stream": io.BytesIO(picture()),
            "headers": {"Transfer-Encoding": "chunked"},
            "environ_overrides": {"wsgi.input_terminated": True},
            **PNG,
        },
        411,
        "Content-Length: expected",
    ),
}


@pytest.mark.parametrize(("request_", "status", "why"), REFUSED.values(), ids=REFUSED)
def test_bad_pictures_are_refused_in_one_line(client, request_, status, why):
    response = client.post("/api/read", **request_)
    assert response.status_code == status
    assert why in response.json["error"]
    assert "\n" not in response.json["error"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_picture_of_this_page_is_taken(client, scheme):
    headers = {"Origin": f"{scheme}://localhost:81", "Host": "localhost:81"}
    response = client.post("/api/read", data=picture(), headers=headers, **PNG)
    assert response.status_code == 200


def test_a_type_may_have_parameters(client):
    kind = "image/png; charset=binary"
    response = client.post("/api/read", data=picture(), content_type=kind)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/test/360", 404),
        ("GET", "/api/test/x", 404),
        ("GET", "/api/test/-1", 404),
        ("GET", "/page/../app.py", 404),
        ("GET", "/page/%2e%2e/app.py", 404),
        ("GET", "/api/read", 405),
        ("PUT", "/api/model", 405),
    ],
)
def test_unknown_paths_and_methods_are_json_errors(client, method, path, status):
    response = client.open(path, method=method)
    assert response.status_code == status
    assert set(response.json) == {"error"}


HOSTS = {
    "127.0.0.1:8128": True,
    "localhost": True,
    "LOCALHOST:1": True,
    "[::1]:8128": True,
    "box.example:80": True,
    "evil.example": False,
    "127.0.0.1.evil.example": False,
    "localhost@evil.example": False,
    "[::1": False,
    "": False,
}


@pytest.mark.parametrize(("host", "ok"), HOSTS.items())
def test_only_own_names_are_answered(reader, host, ok):
    client = create_app(reader, ["127.0.0.1", "Box.example"]).test_client()
    response = client.get("/api/model", headers={"Host": host})
    assert response.status_code == (200 if ok else 400)
    if not ok:
        assert response.json["error"].startswith("Host: expected one of 127.0.0.1, ")
        # Where there is a name to allow.
        named = host not in ("", "[::1")
        assert ("; --allow_host=" in response.json["error"]) == named


@pytest.mark.slow
def test_one_picture_at_a_time_is_decoded(reader, monkeypatch):
    """The largest that is taken needs a gigabyte for a moment."""
    under_way, most = [], []

    def decode(file, form, name):
        under_way.append(name)
        most.append(len(under_way))
        time.sleep(0.05)
        under_way.remove(name)
        return np.zeros((form.side, form.side), np.uint8)

    monkeypatch.setattr("experiments.draw.reader.decode_digit", decode)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: reader.read_picture(io.BytesIO(), name), "abcd"))
    assert most == [1] * 4


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "Box.example", "localhost"])
def test_names_and_addresses_to_listen_on(host):
    require_host("--host", host)


@pytest.mark.parametrize("host", ["", "box:80", "[::1]", "a/b", "http://box", "a b:"])
def test_what_is_no_name_and_no_address_is_refused(host):
    with pytest.raises(RunError, match=r"^--host: expected a name or an address"):
        require_host("--host", host)


@pytest.mark.parametrize("flag", ["--host", "--allow_host"])
def test_the_command_asks_for_such_a_name(flag):
    done = command("draw", "--workdir=none", f"{flag}=")
    assert_one_line_error(done, f"{flag}: expected a name or an address")


def test_the_command_has_the_step_that_is_asked_for(trained):
    nowhere = "--host=192.0.2.1"  # Of no machine, in case it gets there.
    done = command("draw", f"--workdir={trained[0]}", "--step=7", nowhere)
    assert_one_line_error(done, "--step: expected one of [270, 285, 300]")


@pytest.mark.parametrize(("host", "every"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_who_listens_on_every_address_is_told(host, every, monkeypatch, capsys):
    functions = ("serve_forever", "server_close")
    made = types.SimpleNamespace(**dict.fromkeys(functions, lambda: None))
    monkeypatch.setattr(server, "make_server", lambda *_, **options: made)
    monkeypatch.setattr(server, "_end_on_interrupt", lambda: None)
    server.serve(None, host, 0)
    told = f"--host={host} listens on every address of this machine"
    assert (told in capsys.readouterr().out) == every


def test_an_ipv6_address_is_in_brackets(monkeypatch, capsys):
    families = []

    class Listening(contextlib.nullcontext):
        fileno = getsockname = lambda self: (0, 81)

    def listen(address, family):
        families.append(family)
        return Listening()

    functions = ("serve_forever", "server_close")
    made = types.SimpleNamespace(**dict.fromkeys(functions, lambda: None))
    monkeypatch.setattr(server.socket, "create_server", listen)
    monkeypatch.setattr(server, "make_server", lambda *_, **options: made)
    monkeypatch.setattr(server, "_end_on_interrupt", lambda: None)
    server.serve(None, "::1", 0)
    assert families == [socket.AF_INET6]
    assert "Draw at http://[::1]:81/" in capsys.readouterr().out


def test_ctrl_c_stays_ignored_in_the_background():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server._end_on_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


COMPUTING = """if True:
    import jax
    from flask import Flask
    from experiments.draw import server

    page = Flask("computing")

    @page.get("/")
    def compute():
        x = jax.numpy.ones((500, 500))
        print("computing", flush=True)
        while True:
            (x @ x).block_until_ready()

    server.serve(page, "127.0.0.1", 0)
"""


def test_ctrl_c_ends_what_a_request_computes():
    with subprocess.Popen(
        [sys.executable, "-c", COMPUTING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            port = int(re.search(r":(\d+)/ ", server.stdout.readline())[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/")
            assert server.stdout.readline() == "computing\n"
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=30) == 0
            assert server.stderr.read() == ""
        finally:
            server.kill()


def test_the_server_as_a_process(trained):
    """On a free port of 127.0.0.1 alone; Ctrl-C ends it without a word."""
    allowed = "--allow_host=box.example"
    flags = arguments("draw", f"--workdir={trained[0]}", "--port=0", allowed)
    with subprocess.Popen(
        flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert "trained on digits" in server.stdout.readline()
            line = server.stdout.readline()
            port = int(re.fullmatch(r"Draw at http://127.0.0.1:(\d+)/ .*\n", line)[1])
            # One that says nothing keeps no other one waiting.
            silent = socket.create_connection(("127.0.0.1", port))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            # More than is read at once: the answer must reach the client all the same.
            connection.request("POST", "/api/read", bytes(2 * MAX_BODY))
            assert connection.getresponse().status == 415
            body, kind = bytes(2 * MAX_BODY), {"Content-Type": "image/png"}
            connection.request("POST", "/api/read", body, kind)
            response = connection.getresponse()
            assert (response.status, b"at most" in response.read()) == (413, True)
            for host, status in {"evil.example": 400, "box.example": 200}.items():
                connection.request("GET", "/api/model", headers={"Host": host})
                assert connection.getresponse().status == status
            silent.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), timeout=5)
            taken = command("draw", f"--workdir={trained[0]}", f"--port={port}")
            assert_one_line_error(taken, f"can't listen on 127.0.0.1, port {port}")
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=30) == 0
            assert server.stderr.read() == ""
        finally:
            server.kill()
