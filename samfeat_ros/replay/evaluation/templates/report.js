"use strict";
const { frames, runs, subpixel } = JSON.parse(document.getElementById("data").textContent);
const [viewer, slider, canvas, where, table] = ["viewer", "slider", "picture", "where", "numbers"].map((id) => document.getElementById(id));
const names = [...new Set(frames.flatMap((frame) => frame.runs.flatMap((run) => (run ? Object.keys(run.numbers) : []))))];
let current = 0, chosen = 0;

function matches(run) {  // [x before, y before, x, y] of every match, in pixels of the picture
  const bytes = Uint8Array.from(atob(run.matches), (c) => c.charCodeAt(0));
  return Array.from(new Int16Array(bytes.buffer), (value) => value / subpixel);
}

function lines(context, values, from, to, colour) {
  context.strokeStyle = context.fillStyle = colour;
  context.beginPath();
  for (let i = 4 * from; i < 4 * to; i += 4) {
    context.moveTo(values[i], values[i + 1]);
    context.lineTo(values[i + 2], values[i + 3]);
  }
  context.stroke();
  for (let i = 4 * from; i < 4 * to; i += 4) context.fillRect(values[i + 2] - 1, values[i + 3] - 1, 2, 2);
}

function draw(frame) {
  const image = new Image();
  image.onload = () => {
    if (frame !== frames[current]) return;
    canvas.width = image.width;
    canvas.height = image.height;
    const context = canvas.getContext("2d"), run = frame.runs[chosen];
    context.drawImage(image, 0, 0);
    if (!run) return;
    const values = matches(run);
    lines(context, values, run.inliers, values.length / 4, "#e63c3c");
    lines(context, values, 0, run.inliers, "#3cc846");
  };
  image.src = frame.image;
}

function cell(row, text, kind = "td") {
  row.appendChild(document.createElement(kind)).textContent = text;
}

function number(value) {
  return value === null || value === undefined ? "-" : Number.isInteger(value) ? value : value.toFixed(2);
}

function tabulate(frame) {
  table.replaceChildren();
  const head = table.insertRow();
  ["", ...names].forEach((name) => cell(head, name.replace(/_(ms|px|m)$/, ", $1").replaceAll("_", " "), "th"));
  runs.forEach(([name], index) => {
    const row = table.insertRow(), run = frame.runs[index];
    row.dataset.run = index;
    row.classList.toggle("chosen", index === chosen);
    row.onclick = () => { chosen = index; show(current); };
    cell(row, name, "th");
    if (run) names.forEach((key) => cell(row, number(run.numbers[key])));
    else cell(row, "dropped");
  });
}

function show(index) {
  current = Math.max(0, Math.min(frames.length - 1, index));
  const frame = frames[current];
  slider.value = current;
  where.textContent = `Frame ${frame.number}, ${frame.seconds.toFixed(2)} s, stamp ${frame.stamp}; drawn: ${runs[chosen][0]}`;
  tabulate(frame);
  draw(frame);
}

function nearest(seconds) {
  return frames.reduce((best, frame, i) => (Math.abs(frame.seconds - seconds) < Math.abs(frames[best].seconds - seconds) ? i : best), 0);
}

document.querySelectorAll(".timeline").forEach((figure) => {
  const [left, right, start, end] = figure.dataset.timeline.split(" ").map(Number);
  const svg = figure.querySelector("svg");
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
    show(nearest(start + ((share - left) / (right - left)) * (end - start)));
    viewer.scrollIntoView({ behavior: "smooth" });
  });
});
slider.oninput = () => show(Number(slider.value));
document.getElementById("back").onclick = () => show(current - 1);
document.getElementById("next").onclick = () => show(current + 1);
document.addEventListener("keydown", (event) => {
  if (event.target === slider || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  show(current + (event.key === "ArrowLeft" ? -1 : 1));
});
viewer.hidden = false;
show(Math.floor(frames.length / 2));
