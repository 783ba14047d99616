// Average precision: the table with its population, and what to know about it.

function overviewView() {
  const { overview } = data;
  const range = `tIoU ${overview.tious[0]} to ${overview.tious.at(-1)}`;
  const summary = card(4, 'Mean average precision',
    h('div', { class: 'big' }, percent(overview.average), h('small', {}, ' %')),
    soft(overview.tious.length > 1 ? `mean over ${range}` : range),
    h('p', {}, `${populationText()}; ${plural(overview.detections, 'detection')}`));
  const facts = card(8, 'What this is', h('dl', {}, Object.entries(data.facts).map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])));
  const notes = overview.notes.length > 0 && card(12, 'To be known with these numbers',
    h('ul', { class: 'notes' }, overview.notes.map((note) => h('li', {}, note))));
  const grid = h('div', { class: 'grid' });
  onThreshold(() => grid.replaceChildren(...[summary, facts, card(12, null, mapTable()), notes,
    card(6, 'Precision and recall, mean over classes', meanCurves()), errorSummary()].filter(Boolean)));
  return grid;
}

function populationText() {
  const { videos, instances, classes } = data.overview.population;
  return `${plural(videos, 'video')}, ${plural(instances, 'instance')}, ${plural(classes, 'class', 'classes')}`;
}

function mapTable() {
  const { overview } = data;
  const at = (index) => (index === state.t ? 'at' : null);
  const means = Object.entries(overview.means).filter(([name]) => name !== `${overview.tious[0]}:${overview.tious.at(-1)}`);
  return scroll(h('table', { id: 'map' },
    h('caption', {}, `mAP in percent; ${populationText()}`),
    h('thead', {}, h('tr', {}, heads(['tIoU', ...overview.tious, 'average', ...means.map(([name]) => name)], (index) => ({ class: at(index - 1) })))),
    h('tbody', {}, h('tr', {}, h('th', { scope: 'row' }, 'mAP'), overview.map.map((value, index) => h('td', { class: at(index) }, percent(value))),
      h('td', {}, h('b', {}, percent(overview.average))), means.map(([, value]) => h('td', {}, percent(value)))))));
}

/** Interpolated precision of one class at threshold t, at each instance found. */
function precisions(label, t) {
  const best = data.classes.places[label][t].map((place, index) => (index + 1) / place);
  for (let index = best.length - 2; index >= 0; index--) best[index] = Math.max(best[index], best[index + 1]);
  return best;
}

/** The mean over classes of interpolated precision at 101 recalls; the area under it is the mAP. */
function meanPrecision(t) {
  const total = new Array(101).fill(0);
  data.classes.names.forEach((_, label) => {
    const best = precisions(label, t), instances = data.classes.instances[label];
    for (let step = 0; step <= 100; step++) total[step] += best[Math.max(0, Math.ceil((step / 100) * instances - 1e-9) - 1)] ?? 0;
  });
  return total.map((value, step) => [step / 100, value / data.classes.names.length]);
}

function meanCurves() {
  const { tious } = data.overview;
  const series = tious.map((tiou, t) => ({ name: `tIoU ${tiou}`, points: meanPrecision(t), dash: '', colour: t === state.t ? 'var(--accent)' : 'var(--soft)',
    width: t === state.t ? 2.6 : 1, opacity: t === state.t ? 1 : 0.45 }));
  series.push(series.splice(state.t, 1)[0]);
  return [lines(series, { x: [0, 1], y: [0, 1], xTitle: 'recall', yTitle: 'precision', height: 270 }),
    soft(`Bold: tIoU ${tious[state.t]}, mAP ${percent(data.overview.map[state.t])} %.${tious.length > 1 ? ' Faint: the other thresholds.' : ''}`)];
}

function errorSummary() {
  const counts = [...data.errors.total[state.t], data.errors.missed[state.t]];
  const share = counts.slice(0, 6), total = sum(share) || 1;
  const svg = h('svg', { viewBox: '0 0 480 34', role: 'img', 'aria-label': 'Share of each kind among all detections' });
  let x = 0;
  share.forEach((count, index) => {
    const width = (480 * count) / total;
    svg.append(h('rect', { class: `k${index}`, x, y: 4, width: Math.max(0, width - 1), height: 26, rx: 3, ...tipped(`${KINDS[index]}: ${thousands(count)}`) }));
    if (width > 16) svg.append(h('text', { class: 'onbar', x: x + width / 2, y: 21, 'text-anchor': 'middle', 'pointer-events': 'none' }, LETTERS[index]));
    x += width;
  });
  const instances = data.overview.population.instances;
  return card(6, `What the detections are, at tIoU ${data.overview.tious[state.t]}`, sum(share) > 0 && svg,
    bars(counts.map((count, index) => ({ name: kind(index), value: count, kind: `k${index}`,
      text: index < 6 ? `${thousands(count)} (${percent(count / total)} %)` : `${thousands(count)} of ${plural(instances, 'instance')}` })), 'Detections by kind'));
}
