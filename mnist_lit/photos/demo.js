// Draws strokes, posts each change of the drawing, and shows the answer.

const SIDE = 560, PEN_WIDTH = 38, STEP = 20;  // of the canvas in pixels, and of the keyboard's pen
const INTERVAL_MS = 40;  // at least, between two requests
const QUIET_MS = 700;  // after which an answer is read aloud
const EMPTY = {message: "Draw a digit from 0 to 9."};

const $ = id => document.getElementById(id);
const paper = $("paper");
const pen = paper.getContext("2d", {willReadFrequently: true});  // in memory: reading does not wait for the GPU

// The drawing

let drawing = {strokes: [], photo: null};  // a stroke is a list of points; a photo is {file, image}
const earlier = [];  // drawings, for Undo
let stroke = null;  // the one that is being drawn
let pointer = null;  // its mouse, finger or stylus, whose pressure and tilt do not count

function render() {
  pen.clearRect(0, 0, SIDE, SIDE);
  const image = drawing.photo?.image;
  if (image) {
    const scale = SIDE / Math.max(image.width, image.height);
    const [width, height] = [image.width * scale, image.height * scale];
    pen.drawImage(image, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
  }
  pen.strokeStyle = getComputedStyle(paper).color;
  pen.lineWidth = PEN_WIDTH;
  pen.lineCap = pen.lineJoin = "round";
  for (const [start, ...others] of drawing.strokes) {
    pen.beginPath();
    pen.moveTo(...start);
    for (const point of others.length ? others : [start]) pen.lineTo(...point);
    pen.stroke();
  }
  $("sheet").classList.toggle("drawn", Boolean(drawing.strokes.length || image));
  $("invitation").textContent = drawing.photo?.file.name ?? "Draw here";
  $("undo").ariaDisabled = String(!earlier.length);
}

function replaceDrawing(next) {
  liftPen();
  if (drawing.photo) flight?.abort();  // a large photo takes seconds
  drawing = next;
  render();
  ask();
}

function change(next) {
  earlier.push(drawing);
  replaceDrawing(next);
}

function undo() {
  if (earlier.length) replaceDrawing(earlier.pop());
}

function clear() {
  if (drawing.strokes.length || drawing.photo) change({strokes: [], photo: null});
}

function startStroke(point) {
  const started = [point];
  change({strokes: [...drawing.strokes, started], photo: null});
  stroke = started;
}

function extendStroke(...points) {
  stroke.push(...points);
  render();
  ask();
}

function liftPen() {
  stroke = pointer = null;
  $("cursor").classList.remove("down");
}

function position(event) {
  const {left, top, width} = paper.getBoundingClientRect();
  return [(event.clientX - left) * SIDE / width, (event.clientY - top) * SIDE / width];
}

paper.onpointerdown = event => {
  if (pointer !== null || event.button !== 0) return;  // a second finger, or the palm
  paper.setPointerCapture(event.pointerId);
  startStroke(position(event));
  pointer = event.pointerId;
};
paper.onpointermove = event => {
  if (event.pointerId !== pointer) return;
  const events = event.getCoalescedEvents?.() ?? [];
  extendStroke(...(events.length ? events : [event]).map(position));
};
paper.onlostpointercapture = event => { if (event.pointerId === pointer) liftPen(); };

// The keyboard's pen

const MOVES = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const pressed = new Set();  // two arrow keys together move diagonally
let cursor = [SIDE / 2, SIDE / 2];

function placeCursor() {
  [$("cursor").style.left, $("cursor").style.top] = cursor.map(value => `${100 * value / SIDE}%`);
}

paper.onkeydown = event => {
  if (event.ctrlKey || event.metaKey || event.altKey || pointer !== null) return;
  if (event.key === " ") {
    if (event.repeat) return event.preventDefault();
    if (stroke) liftPen();
    else {
      startStroke(cursor);
      $("cursor").classList.add("down");
    }
    $("status").textContent = stroke ? "Pen down." : "Pen up.";
  } else if (MOVES[event.key]) {
    pressed.add(event.key);
    for (const key of pressed) {
      cursor = cursor.map((value, axis) => Math.min(SIDE - 30, Math.max(30, value + STEP * MOVES[key][axis])));
    }
    placeCursor();
    if (stroke) extendStroke(cursor);
  } else return;
  event.preventDefault();  // else the page scrolls
};
paper.onkeyup = event => pressed.delete(event.key);
paper.onblur = () => {
  pressed.clear();
  liftPen();
};
document.onkeydown = event => {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z") undo();
};

// Requests: one at a time, so that the next one always posts the newest drawing

let drawn = 0, shown = 0;  // numbers of the newest drawing, and of the one whose answer is shown
let isAsking = false, flight = null;

async function ask() {
  drawn++;
  if (!drawing.strokes.length && !drawing.photo) show(EMPTY, drawn);
  $("result").classList.toggle("pending", shown < drawn);
  if (isAsking) return;
  isAsking = true;
  while (shown < drawn) {
    const number = drawn, pause = new Promise(resolve => setTimeout(resolve, INTERVAL_MS));
    const received = await post();
    if (received && number > shown) show(received, number);
    await pause;
  }
  isAsking = false;
}

async function post() {
  flight = new AbortController();
  const [path, body] = drawing.photo ? ["photo", drawing.photo.file] : ["drawing", drawingFile()];
  try {
    return await (await fetch(path, {method: "POST", body, signal: flight.signal})).json();
  } catch (error) {
    return error.name === "AbortError" ? null
      : {error: "No answer: the file cannot be sent, or mnist-lit demo has stopped."};
  }
}

function drawingFile() {  // as a PGM file, black on white, at once: toBlob may wait a second until the browser is idle
  const {data} = pen.getImageData(0, 0, SIDE, SIDE), gray = new Uint8Array(SIDE * SIDE);
  for (let index = 0; index < gray.length; index++) gray[index] = 255 - data[4 * index + 3];
  return new Blob([`P5 ${SIDE} ${SIDE} 255\n`, gray]);
}

async function readPhoto(file) {
  if (!file) return;
  const photo = {file, image: null};
  change({strokes: [], photo});
  try {
    photo.image = await createImageBitmap(file);
    render();
  } catch { /* the browser cannot show this format, but the server may read it */ }
}
$("photo").onchange = event => {
  readPhoto(event.target.files[0]);
  event.target.value = "";  // else the same photo cannot be chosen again
};
document.ondragover = event => event.preventDefault();
document.ondrop = event => {
  event.preventDefault();
  readPhoto(event.dataTransfer.files[0]);
};

// The answer

const BLANK = {probabilities: Array(10).fill(0), input: []};
const bars = [...Array(10).keys()].map(digit => {
  const item = document.createElement("li");
  item.innerHTML = `<b>${digit}</b><span class="track"><i></i></span><span class="percent"></span>`;
  $("bars").append(item);
  return item;
});
let networks = [];  // {name, option}
let chosen = 0;
let answer = EMPTY;

function percent(value) {  // never 0 % or 100 % for a value that is only close to it
  if (value > 0.9995 && value < 1) return "over 99.9 %";
  return value > 0 && value < 0.0005 ? "under 0.1 %" : `${(100 * value).toFixed(1)} %`;
}
const ranked = values => values.map((value, digit) => ({value, digit})).sort((a, b) => b.value - a.value);

function show(newest, number = shown) {
  [answer, shown] = [newest, number];
  $("result").classList.toggle("pending", shown < drawn);
  $("result").classList.toggle("empty", answer === EMPTY);
  $("result").classList.toggle("error", Boolean(answer.error));
  const {probabilities, input} = answer.networks?.[chosen] ?? BLANK;
  const [first, second] = ranked(probabilities), isRead = Boolean(answer.networks);
  $("digit").textContent = isRead ? first.digit : answer.error ? "!" : "?";
  $("answer").textContent = isRead ? `It reads ${first.digit}, ${percent(first.value)} sure.`
    : answer.error ?? answer.message;
  $("guess").textContent = isRead ? `Second guess: ${second.digit}, ${percent(second.value)}.` : "";
  bars.forEach((item, digit) => {
    item.querySelector("i").style.height = `${100 * probabilities[digit]}%`;
    item.querySelector(".percent").textContent = isRead ? Math.round(100 * probabilities[digit]) : "";
    item.classList.toggle("first", isRead && digit === first.digit);
  });
  networks.forEach(({option}, index) => {
    const [best] = ranked(answer.networks?.[index].probabilities ?? []);
    option.querySelector(".vote").textContent = best ? `${best.digit}, ${percent(best.value)}` : "";
  });
  paint("pixels", answer.pixels ?? []);
  paint("input", input);
  if (shown === drawn) announce(`${$("answer").textContent} ${$("guess").textContent}`);
}

function paint(id, rows) {
  const canvas = $(id), size = rows.length;
  if (size) $(`${id}-size`).textContent = `${size} × ${size}`;
  canvas.width = canvas.height = size || 28;  // which clears it
  if (!size) return;
  const image = new ImageData(size, size);
  rows.flat().forEach((gray, index) => image.data.set([gray, gray, gray, 255], 4 * index));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

let timer;
function announce(text) {  // to a screen reader, when nothing has followed for a while
  clearTimeout(timer);
  timer = setTimeout(() => { $("status").textContent = text; }, QUIET_MS);
}

function choose(index) {
  chosen = index;
  $("input-of").textContent = networks[index].name;
  show(answer);
}

function addNetwork({name, parameters}, index) {
  const option = document.createElement("label");
  option.innerHTML = '<input type="radio" name="network"><b></b> <small></small> <span class="vote"></span>';
  option.querySelector("b").textContent = name;
  option.querySelector("small").textContent = `${parameters.toLocaleString("en")} parameters`;
  option.querySelector("input").onchange = () => choose(index);
  $("networks").append(option);
  return {name, option};
}

$("undo").onclick = undo;
$("clear").onclick = clear;
matchMedia("(prefers-color-scheme: dark)").onchange = render;
placeCursor();
render();
show(EMPTY);
networks = (await (await fetch("networks")).json()).map(addNetwork);
networks.at(-1).option.querySelector("input").click();
