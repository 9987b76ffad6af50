// The page draws and shows; all reading is done by the server.

import { paintGate, paintInk, paintProbabilities, paintState } from "./maps.js";
import { Pad } from "./pad.js";

const $ = (id) => document.getElementById(id);
const ROW_MS = 45;
const GATES = ["i", "f", "o"];
const still = matchMedia("(prefers-reduced-motion: reduce)");

let about = null;
let pad = null;
let reading = null;
let row = 0; // Rows shown as read.
let layer = 0;
let timer = 0;
let latest = 0; // Number of the newest request; answers to older ones are dropped.
let changes = 0; // Of the drawing, which no digit that was asked for before may replace.

// --- Asking the server -----------------------------------------------------------

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const other = `expected JSON, got something else with status ${response.status}`;
  throw new Error(body?.error ?? `The server’s answer was not understood: ${other}.`);
}

// Shows what `path` answers, unless something newer was asked for meanwhile.
async function read(path, options, { sweep, onPad }) {
  const number = ++latest;
  const before = changes;
  try {
    const answer = await ask(path, options);
    if (number !== latest || (onPad && changes !== before)) return;
    if (onPad) pad.showImage(answer.image, about.side);
    show(answer, sweep);
  } catch (error) {
    if (number === latest) complain(error.message);
  }
}

// Of a digit that was not drawn here.
function readGiven(path, options) {
  waiting = null;
  return read(path, options, { sweep: true, onPad: true });
}

function complain(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

// --- The drawing -----------------------------------------------------------------

let busy = false;
let waiting = null;

// One request at a time, and then the newest drawing. An empty sheet waits for none.
async function readDrawing(finished) {
  changes++;
  waiting = pad.empty ? null : { finished };
  if (pad.empty) forget();
  if (busy) return;
  busy = true;
  while (waiting) {
    const { finished } = waiting;
    waiting = null;
    await read("api/read", { method: "POST", body: pad.picture() }, { sweep: finished });
  }
  busy = false;
}

$("undo").onclick = () => pad?.undo();
$("clear").onclick = () => pad?.clear();
$("picture").onchange = (event) => {
  const [file] = event.target.files;
  event.target.value = ""; // So that the same file can be chosen again.
  if (!file) return;
  readGiven("api/read", { method: "POST", body: file });
};

// --- Test digits -----------------------------------------------------------------

function readTest(index) {
  index = Math.min(Math.max(Math.trunc(index) || 0, 0), about.tests - 1);
  $("index").value = index;
  readGiven(`api/test/${index}`);
}

const index = () => Number($("index").value);
$("previous").onclick = () => readTest(index() - 1);
$("next").onclick = () => readTest(index() + 1);
$("random").onclick = () => readTest(Math.floor(Math.random() * about.tests));
$("index").onchange = () => readTest(index());
$("pick").onsubmit = (event) => {
  event.preventDefault();
  readTest(index());
};

async function showHardest() {
  for (const hard of await ask("api/hardest")) {
    const percent = format(hard.probability);
    const seen = `${hard.label} → ${hard.answer}`;
    const button = document.createElement("button");
    button.type = "button";
    button.ariaLabel = `${seen}. Test digit ${hard.index}: a ${hard.label}, read as ${hard.answer} with ${percent}`;
    const canvas = document.createElement("canvas");
    button.append(canvas, seen);
    button.onclick = () => readTest(hard.index);
    const item = document.createElement("li");
    item.append(button);
    $("hardest").append(item);
    hardest.push({ canvas, image: hard.image });
  }
  paintHardest();
}

const hardest = [];
const paintHardest = () =>
  hardest.forEach(({ canvas, image }) => paintInk(canvas, image, about.side, about.side));

// --- Showing a reading -----------------------------------------------------------

function show(answer, sweep) {
  complain("");
  reading = answer;
  $("row").max = reading.probabilities.length;
  $("sentence").textContent = "";
  if (sweep && !still.matches) {
    play();
  } else {
    stopAt(reading.probabilities.length);
    if (sweep) $("sentence").textContent = sentence();
  }
}

function forget() {
  latest++;
  reading = null;
  complain("");
  $("sentence").textContent = "Draw a digit from 0 to 9.";
  stopAt(0);
}

function play() {
  clearInterval(timer);
  $("row-text").ariaLive = "off"; // Rows that pass by are not spoken.
  row = 0;
  timer = setInterval(() => {
    row++;
    if (row < reading.probabilities.length) return paint();
    stopAt(row);
    $("sentence").textContent = sentence();
  }, ROW_MS);
}

function stopAt(rows) {
  clearInterval(timer);
  $("row-text").ariaLive = "polite";
  row = rows;
  paint();
}

$("play").onclick = () => reading && play();
$("row").oninput = () => reading && stopAt(Number($("row").value));

const best = (probabilities) => probabilities.indexOf(Math.max(...probabilities));
const format = (probability) => `${(100 * probability).toFixed(1)} %`;

function sentence() {
  const said = `Read as ${reading.answer}, with ${format(reading.probabilities.at(-1)[reading.answer])}.`;
  if (reading.label === undefined) return said;
  const verdict = reading.label === reading.answer ? "right" : `wrong, its label is ${reading.label}`;
  return `${said} Test digit ${reading.index}: ${verdict}.`;
}

function paint() {
  paintAnswer();
  const rows = reading?.probabilities.length ?? about.side;
  paintInk($("image"), reading?.image, rows, about.side, row);
  paintProbabilities($("probabilities"), reading?.probabilities, rows, about.classes, row);
  const trace = reading?.layers[layer];
  for (const gate of GATES) paintGate($(gate), trace?.[gate], rows, about.units, row);
  paintState($("c"), trace?.c, rows, about.units, row);
  $("low").textContent = trace ? `−${trace.limit}` : "−";
  $("high").textContent = trace ? `${trace.limit}` : "+";
  for (const line of document.querySelectorAll(".line")) {
    line.style.top = `${(100 * row) / rows}%`;
    line.hidden = !reading || row === rows;
  }
  $("row").value = row;
  $("row").disabled = $("play").disabled = !reading;
  $("row-text").textContent = `row ${row} of ${rows}`;
}

function paintAnswer() {
  const probabilities = row ? reading.probabilities[row - 1] : null;
  const answer = probabilities ? best(probabilities) : null;
  $("digit").textContent = answer ?? "–";
  const done = reading && row === reading.probabilities.length;
  $("digit").classList.toggle("wrong", Boolean(done && reading.label !== undefined && answer !== reading.label));
  [...$("bars").children].forEach((item, digit) => {
    const probability = probabilities?.[digit] ?? 0;
    item.classList.toggle("best", digit === answer);
    item.querySelector("i").style.transform = `scaleX(${probability})`;
    item.querySelector("span").textContent = probabilities ? format(probability) : "";
  });
}

// --- Beginning -------------------------------------------------------------------

function layerTabs() {
  const names = [];
  for (let number = 1; number <= about.layers; number++) {
    names.push(about.directions === 2 ? `Layer ${number}, down` : `Layer ${number}`);
    if (about.directions === 2) names.push(`Layer ${number}, up`);
  }
  names.forEach((name, number) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.textContent = name;
    tab.onclick = () => {
      layer = number;
      [...$("layers").children].forEach((other) => (other.ariaPressed = String(other === tab)));
      paint();
    };
    $("layers").append(tab);
  });
  $("layers").lastChild.click(); // The top layer, which the answer is read from.
}

function enable(yes) {
  for (const control of document.querySelectorAll("button, input")) control.disabled = !yes;
  $("pad").ariaDisabled = String(!yes);
}

async function begin() {
  enable(false); // Until there is a model to ask.
  try {
    about = await ask("api/model");
  } catch (error) {
    complain(error.message);
    return;
  }
  enable(true);
  const some = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;
  const both = about.directions === 2 ? "bidirectional " : "";
  const data = about.embedded ? "the embedded 8×8 digits" : "MNIST";
  const epochs = about.epoch === 0 ? "part of an epoch" : some(about.epoch, "epoch");
  $("model").textContent =
    `${some(about.layers, `${both}layer`)} of ${some(about.units, "unit")}, ` +
    `trained on ${data} for ${epochs}`;
  $("embedded").hidden = !about.embedded;
  for (let digit = 0; digit < about.classes; digit++) {
    const item = document.createElement("li");
    item.innerHTML = `<b>${digit}</b><i></i><span></span>`;
    $("bars").append(item);
    const head = document.createElement("span");
    head.textContent = digit;
    $("digits").append(head);
  }
  layerTabs();
  $("index").max = about.tests - 1;
  if (about.tests) {
    showHardest().catch((error) => complain(error.message));
  } else {
    for (const control of $("pick").elements) control.disabled = true;
    $("hard-hint").hidden = true;
    $("missing").hidden = false;
    $("missing").textContent = `No test digits here: ${about.testsMissing}.`;
  }
  matchMedia("(prefers-color-scheme: dark)").onchange = () => {
    pad.paint();
    paint();
    paintHardest();
  };
  pad = new Pad($("pad"), $("pen"), readDrawing);
  forget();
}

begin();
