// One video: what is annotated, what was detected, and what the model saw, over time, on a canvas.

const unpacked = new Map();
/** The packed videos stand behind this script, so that a page of thousands is seen before they are read. */
const packedLines = new Promise((resolve) => document.addEventListener('DOMContentLoaded',
  () => resolve(document.getElementById('packed').textContent.split('\n'))));

/** A video's ground truth, detections and scores. */
async function unpack(index) {
  const { group } = data.videos, line = Math.floor(index / group);
  if (unpacked.size > 20) unpacked.delete(unpacked.keys().next().value);
  if (!unpacked.has(line)) unpacked.set(line, unpackLine(line));
  return (await unpacked.get(line))[index % group];
}

/** All videos of a line: see aumn/report/videos.py for how they are packed. */
async function unpackLine(line) {
  const bytes = Uint8Array.from(atob((await packedLines)[line]), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  const content = new Uint8Array(await new Response(stream).arrayBuffer());
  const { group, ids, instances, detections } = data.videos;
  let at = 0;
  const take = (size) => content.subarray(at, (at += size));
  const list = (count, read) => Array.from({ length: count }, (_, n) => read(n));
  const numbers = (count) => [...new Float64Array(take(8 * count).slice().buffer)];
  const rows = (count, width) => {
    const found = list(count, () => numbers(width));
    return found.map((row) => [...row.slice(0, -2), row.at(-2) / 1000, row.at(-1) / 1000, take(data.overview.tious.length)]);
  };
  const scores = () => {
    const [number, snippets, snippet_s, first_s, threshold, kept] = numbers(6), { stream, units } = data.units[number];
    return { name: stream, snippets, snippet_s, first_s, threshold, units, classes: numbers(kept), video: numbers(kept),
      attention: take(snippets), cas: list(kept, () => take(snippets)), similarity: units.map(() => take(snippets)) };
  };
  return list(Math.min(group, ids.length - line * group), (nth) => {
    const index = line * group + nth;
    return { gt: rows(instances[index], 3), det: rows(detections[index], 4), streams: list(numbers(1)[0], scores) };
  });
}

const GUTTER = 168, LANE = 19, PLOT = 84;
const streamColour = (name, index) => colour(streamInk(name, index));

/** The tracks of a video from top to bottom: {name, height, draw(context, box)}. */
function tracks(video, view) {
  const found = [];
  const labels = [...new Set(video.gt.map((row) => row[0]))];
  found.push({ name: 'Ground truth', head: true, height: 22 });
  for (const label of labels) found.push({ name: data.names[label], height: LANE, draw: (pen) => truthLane(pen, video.gt.filter((row) => row[0] === label)) });
  if (!labels.length) found.push({ name: 'nothing is annotated', height: LANE });
  found.push({ name: 'Detections', head: true, height: 24 });
  const detected = [...new Set(video.det.map((row) => row[0]))];
  const shown = view.all ? detected : detected.slice(0, 8);
  for (const label of shown) {
    const lanes = packLanes(video.det.filter((row) => row[0] === label), view.all ? 12 : 3);
    lanes.forEach((rows, index) => found.push({ name: index ? '' : data.names[label], height: LANE - 3, draw: (pen) => detectionLane(pen, rows) }));
  }
  if (!detected.length) found.push({ name: 'none', height: LANE });
  if (shown.length < detected.length) found.push({ name: `${plural(detected.length - shown.length, 'more class', 'more classes')}: press a`, height: LANE });
  if (video.streams.length) {
    const height = Math.max(PLOT, 18 * video.streams.length + 14);
    found.push({ name: 'Foreground attention', head: true, height: 26 });
    found.push({ name: '', height, plot: true, draw: (pen) => curves(pen, video.streams.map((one) => one.attention), video.streams, true) });
    const kept = video.streams[0].classes.indexOf(view.label);
    if (kept >= 0) {
      found.push({ name: `CAS of ${data.names[view.label]}`, head: true, height: 26 });
      found.push({ name: '', height, plot: true, draw: (pen) => curves(pen, video.streams.map((one) => one.cas[kept]), video.streams, false) });
    }
    for (const one of video.streams) {
      const row = one.units.length > 24 ? 5 : 11;
      found.push({ name: `Similarity to units, ${one.name}`, head: true, height: 26 });
      one.units.forEach((unit, k) => found.push({ name: row > 8 ? `unit ${unit + 1}` : '', small: true, height: row, draw: (pen) => heatRow(pen, one, one.similarity[k]) }));
    }
  }
  return found;
}

/** Detections, best first, in as few lanes as do not overlap; those that fit in no lane are left out. */
function packLanes(rows, most) {
  const lanes = [];
  for (const row of rows) {
    const free = lanes.find((lane) => lane.every((other) => other[3] <= row[2] || other[2] >= row[3]));
    if (free) free.push(row);
    else if (lanes.length < most) lanes.push([row]);
  }
  return lanes;
}

function segment(pen, start, end) {
  const x1 = Math.max(pen.X(start), GUTTER), x2 = Math.min(pen.X(end), pen.width);
  return x2 > GUTTER && x1 < pen.width ? [x1, Math.max(2, x2 - x1)] : null;
}

function letter(pen, text, x, width, ink) {
  if (width < 15) return;
  pen.c.fillStyle = ink;
  pen.c.font = '700 10px ui-monospace, monospace';
  pen.c.textAlign = 'center';
  pen.c.fillText(text, x + width / 2, pen.y + pen.height / 2 + 3.5);
}

function truthLane(pen, rows) {
  for (const [, start, end, taken] of rows) {
    const at = segment(pen, start, end);
    if (!at) continue;
    pen.bars.push({ x: at[0], width: at[1], y: pen.y, height: pen.height, start, end });
    const missed = !taken[state.t];
    pen.c.fillStyle = missed ? hatch(pen.c) : colour('truth');
    pen.c.strokeStyle = colour('truth');
    pen.c.fillRect(at[0], pen.y + 3, at[1], pen.height - 6);
    pen.c.strokeRect(at[0] + 0.5, pen.y + 3.5, at[1] - 1, pen.height - 7);
    if (missed) {
      if (at[1] >= 15) {
        pen.c.fillStyle = colour('card');
        pen.c.fillRect(at[0] + at[1] / 2 - 7, pen.y + 4, 14, pen.height - 8);
      }
      letter(pen, 'M', at[0], at[1], colour('ink'));
    }
  }
}

function hatch(context) {
  const tile = document.createElement('canvas');
  tile.width = tile.height = 12;
  const c = tile.getContext('2d');
  c.strokeStyle = colour('truth');
  c.lineWidth = 1.6;
  c.beginPath();
  for (const shift of [-12, 0, 12]) { c.moveTo(shift, 12); c.lineTo(shift + 12, 0); }
  c.stroke();
  return context.createPattern(tile, 'repeat');
}

function detectionLane(pen, rows) {
  const best = pen.best || 1;
  for (const [, score, start, end, kinds] of rows) {
    const at = segment(pen, start, end);
    if (!at) continue;
    pen.bars.push({ x: at[0], width: at[1], y: pen.y, height: pen.height, start, end });
    const which = kinds[state.t];
    const strength = 0.3 + 0.7 * Math.sqrt(Math.max(0, score) / best);
    pen.c.globalAlpha = strength;
    pen.c.fillStyle = colour(`k${which}`);
    pen.c.fillRect(at[0], pen.y + 2, at[1] - 1, pen.height - 4);
    pen.c.globalAlpha = 1;
    letter(pen, LETTERS[which], at[0], at[1], state.theme === 'dark' && strength < 0.65 ? colour('ink') : '#101214');
  }
}

function curves(pen, values, streams, thresholds) {
  const top = pen.y + 4, low = pen.y + pen.height - 4;
  pen.c.strokeStyle = colour('line');
  pen.c.lineWidth = 1;
  for (const share of [0, 0.5, 1]) line(pen.c, GUTTER, low - share * (low - top), pen.width, low - share * (low - top));
  pen.c.fillStyle = colour('soft');
  pen.c.font = '10px system-ui, sans-serif';
  pen.c.textAlign = 'right';
  for (const share of [0, 1]) pen.c.fillText(String(share), GUTTER - 6, low - share * (low - top) + 3);
  streams.forEach((one, index) => {
    pen.c.strokeStyle = pen.c.fillStyle = streamColour(one.name, index);
    pen.c.setLineDash(streamDash(index).split(' ').filter(Boolean).map(Number));
    pen.c.lineWidth = 1.7;
    pen.c.beginPath();
    for (let t = 0; t < values[index].length; t++) {
      const y = low - (values[index][t] / 255) * (low - top);
      pen.c.lineTo(pen.X(one.first_s + t * one.snippet_s), y);
      pen.c.lineTo(pen.X(one.first_s + (t + 1) * one.snippet_s), y);
    }
    pen.c.stroke();
    if (thresholds) {
      pen.c.lineWidth = 1;
      pen.c.setLineDash([2, 4]);
      line(pen.c, GUTTER, low - one.threshold * (low - top), pen.width, low - one.threshold * (low - top));
    }
    pen.c.setLineDash([]);
  });
}

function heatRow(pen, one, values) {
  const strip = document.createElement('canvas');
  strip.width = values.length;
  strip.height = 1;
  const context = strip.getContext('2d'), image = context.createImageData(values.length, 1), ink = rgb(colour('accent'));
  values.forEach((value, t) => image.data.set([...ink, value], 4 * t));
  context.putImageData(image, 0, 0);
  pen.c.imageSmoothingEnabled = false;
  pen.c.fillStyle = colour('faint');
  const x = pen.X(one.first_s), width = pen.X(one.first_s + values.length * one.snippet_s) - x;
  pen.c.fillRect(x, pen.y, width, pen.height - 1);
  pen.c.drawImage(strip, x, pen.y, width, pen.height - 1);
}

function rgb(text) {
  const number = parseInt(text.slice(1), 16);
  return [number >> 16, (number >> 8) & 255, number & 255];
}

function line(context, x1, y1, x2, y2) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

/** Draw a video on a canvas between view.from and view.to seconds; gives the horizontal scale. */
function drawVideo(canvas, video, view) {
  const parts = tracks(video, view), width = Math.max(360, canvas.parentElement.clientWidth), height = sum(parts.map((part) => part.height)) + 26;
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const c = canvas.getContext('2d');
  c.scale(scale, scale);
  const X = (time) => GUTTER + ((time - view.from) / (view.to - view.from || 1)) * (width - GUTTER);
  const inside = (draw) => {
    c.save();
    c.beginPath();
    c.rect(GUTTER - 18, 0, width, height);
    c.clip();
    draw();
    c.restore();
  };
  const pen = { c, X, width, bars: [], best: Math.max(...video.det.map((row) => row[1]), 1e-9) };
  inside(() => {
    c.fillStyle = colour('band');
    for (const [label, start, end] of video.gt) {
      const at = label === view.label && segment(pen, start, end);
      if (at) c.fillRect(at[0], 22, at[1], height - 48);
    }
  });
  let y = 0;
  for (const part of parts) {
    Object.assign(pen, { y, height: part.height });
    c.textAlign = 'left';
    c.fillStyle = colour(part.head ? 'ink' : 'soft');
    c.font = part.head ? '600 12px system-ui, sans-serif' : `${part.small ? 9.5 : 12}px system-ui, sans-serif`;
    c.fillText(cut(c, part.name, part.head ? width : GUTTER - 14), part.head ? 0 : 2, y + part.height / 2 + (part.head ? 6 : 4));
    if (part.plot) plotKeys(pen, video.streams);
    if (part.draw) inside(() => part.draw(pen));
    y += part.height;
  }
  timeAxis(c, X, view, y, width);
  return { X, bars: pen.bars, time: (x) => view.from + ((x - GUTTER) / (width - GUTTER)) * (view.to - view.from) };
}

/** The streams' names and lines, left of a plot. */
function plotKeys(pen, streams) {
  streams.forEach((one, index) => {
    const y = pen.y + 22 + index * 18;
    pen.c.strokeStyle = pen.c.fillStyle = streamColour(one.name, index);
    pen.c.lineWidth = 1.7;
    pen.c.setLineDash(streamDash(index).split(' ').filter(Boolean).map(Number));
    line(pen.c, 2, y - 4, 26, y - 4);
    pen.c.setLineDash([]);
    pen.c.font = '600 11px system-ui, sans-serif';
    pen.c.textAlign = 'left';
    pen.c.fillText(one.name.toUpperCase(), 32, y);
  });
}

function cut(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let length = text.length;
  while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > width) length--;
  return `${text.slice(0, length)}…`;
}

function timeAxis(c, X, view, y, width) {
  c.strokeStyle = colour('line');
  c.lineWidth = 1;
  c.fillStyle = colour('soft');
  c.font = '11px system-ui, sans-serif';
  c.textAlign = 'center';
  line(c, GUTTER, y + 4, width, y + 4);
  for (const tick of ticks(view.from, view.to, Math.max(3, Math.floor((width - GUTTER) / 110)))) {
    const x = X(tick);
    if (x < GUTTER || x > width - 14) continue;
    line(c, x, y + 4, x, y + 8);
    c.fillText(tick < 60 ? `${short(tick)} s` : seconds(tick).replace(/\.0$/, ''), x, y + 20);
  }
}
