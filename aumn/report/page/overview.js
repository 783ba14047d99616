// Average precision: the table with its population, and what to know about it.

function overviewView() {
  const { overview } = data;
  const range = `tIoU ${overview.tious[0]} to ${overview.tious.at(-1)}`;
  const { population } = overview;
  const summary = h('section', { class: 'card w4' },
    h('h2', {}, 'Mean average precision'),
    h('div', { class: 'big' }, percent(overview.average), h('small', {}, ' %')),
    h('p', { class: 'soft' }, overview.tious.length > 1 ? `mean over ${range}` : range),
    h('p', {}, `${plural(population.videos, 'video')}, ${plural(population.instances, 'instance')}, ${plural(population.classes, 'class', 'classes')}; `
      + plural(overview.detections, 'detection')));
  const facts = h('section', { class: 'card w8' }, h('h2', {}, 'What this is'),
    h('dl', {}, Object.entries(data.facts).map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])));
  const curve = h('section', { class: 'card w6' });
  const errorBar = h('section', { class: 'card w6' });
  const tableCard = h('section', { class: 'card w12' });
  const notes = overview.notes.length > 0 && h('section', { class: 'card w12' }, h('h2', {}, 'To be known with these numbers'),
    h('ul', { class: 'notes' }, overview.notes.map((note) => h('li', {}, note))));
  function draw() {
    tableCard.replaceChildren(mapTable());
    curve.replaceChildren(h('h2', {}, 'Precision and recall, mean over classes'), ...meanCurves());
    errorBar.replaceChildren(...errorSummary().filter(Boolean));
  }
  draw();
  onChange((changes) => 't' in changes && draw());
  return h('div', { class: 'grid' }, summary, facts, tableCard, notes, curve, errorBar);
}

function mapTable() {
  const { overview } = data;
  const at = (index) => (index === state.t ? 'at' : null);
  const means = Object.entries(overview.means).filter(([name]) => name !== `${overview.tious[0]}:${overview.tious.at(-1)}`);
  const { population } = overview;
  return h('div', { class: 'scroll' }, h('table', { id: 'map' },
    h('caption', {}, `mAP in percent; ${plural(population.videos, 'video')}, ${plural(population.instances, 'instance')}, ${plural(population.classes, 'class', 'classes')}`),
    h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'tIoU'), overview.tious.map((tiou, index) => h('th', { scope: 'col', class: at(index) }, tiou)),
      h('th', { scope: 'col' }, 'average'), means.map(([name]) => h('th', { scope: 'col' }, name)))),
    h('tbody', {}, h('tr', {}, h('th', { scope: 'row' }, 'mAP'), overview.map.map((value, index) => h('td', { class: at(index) }, percent(value))),
      h('td', {}, h('b', {}, percent(overview.average))), means.map(([, value]) => h('td', {}, percent(value)))))));
}

/** Interpolated precision of one class at threshold t, as a staircase over recall. */
function precisionRecall(label, t) {
  const places = data.classes.places[label][t], instances = data.classes.instances[label];
  const best = places.map((place, index) => (index + 1) / place);
  for (let index = best.length - 2; index >= 0; index--) best[index] = Math.max(best[index], best[index + 1]);
  return { best, instances };
}

/** The mean over classes of interpolated precision at 101 recalls; the area under it is the mAP. */
function meanPrecision(t) {
  const total = new Array(101).fill(0);
  data.classes.names.forEach((_, label) => {
    const { best, instances } = precisionRecall(label, t);
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
    h('p', { class: 'soft' }, `Bold: tIoU ${tious[state.t]}, mAP ${percent(data.overview.map[state.t])} %.${tious.length > 1 ? ' Faint: the other thresholds.' : ''}`)];
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
  return [h('h2', {}, `What the detections are, at tIoU ${data.overview.tious[state.t]}`), sum(share) > 0 && svg,
    bars(counts.map((count, index) => ({ name: kind(index), value: count, kind: `k${index}`,
      text: index < 6 ? `${thousands(count)} (${percent(count / total)} %)` : `${thousands(count)} of ${plural(instances, 'instance')}` })), 'Detections by kind')];
}
