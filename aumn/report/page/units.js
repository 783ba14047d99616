// Action units a person can read: what excites each one, and which classes share it.

function unitsView() {
  const picker = h('div', { class: 'controls', role: 'group', 'aria-label': 'Stream' });
  const body = h('div', { class: 'grid' });
  let stream = 0, only = null;
  function draw() {
    const found = data.units[stream];
    picker.replaceChildren(...data.units.map((one, index) => h('button', { type: 'button', 'aria-pressed': String(index === stream),
      onclick: () => { stream = index; only = null; draw(); } }, one.stream.toUpperCase())),
    h('span', { class: 'soft' }, `${plural(found.units.length, 'action unit')} of the ${found.stream} network`));
    const many = found.units.length > 10;
    body.replaceChildren(card(many ? 12 : 5, 'Which classes share a unit', picture(found, (k) => { only = only === k ? null : k; draw(); }, only)),
      card(many ? 12 : 7, only === null ? 'What excites each unit most' : `What excites unit ${found.units[only] + 1} most`, unitTable(found, only)));
  }
  draw();
  onChange((changes) => 'theme' in changes && draw());
  return h('div', {}, picker, body);
}

/** Classes as rows, units as columns, coloured by mean similarity; a number in every cell. */
function picture(found, choose, only) {
  const labels = data.classes.names.map((name, label) => ({ name, label })).filter(({ label }) => found.measured[label]);
  const rows = [...labels, { name: 'background', label: data.classes.names.length, sum: true }, { name: 'all snippets', label: null, sum: true }];
  const all = found.classes.flat().concat(found.mean), low = Math.min(...all), high = Math.max(...all);
  const cell = (value, k) => {
    const share = (value - low) / (high - low || 1);
    return h('td', { class: 'cell', style: { background: `color-mix(in oklab, var(--accent) ${Math.round(100 * share)}%, var(--faint))`,
      color: share > 0.55 ? 'var(--accent-ink)' : 'var(--ink)', opacity: only === null || only === k ? 1 : 0.35 } }, value.toFixed(2));
  };
  return h('div', {}, soft('Mean similarity (Eq. 5) of a class’s snippets to each unit. A unit that several classes share stands out in several rows. Press a unit for its snippets alone.'),
    h('div', { class: 'scroll', style: { maxHeight: '34rem' } }, h('table', { class: 'heat' },
      h('thead', {}, h('tr', {}, heads(['class', ...found.units.map((unit, k) =>
        h('button', { type: 'button', title: `Unit ${unit + 1}`, 'aria-pressed': String(only === k), onclick: () => choose(k) }, unit + 1))]))),
      h('tbody', {}, rows.map((row) => h('tr', { class: row.sum ? 'sum' : null }, h('th', { scope: 'row', style: { fontWeight: row.sum ? 600 : 'inherit' }, title: row.name }, row.name),
        found.units.map((_, k) => cell(row.label === null ? found.mean[k] : found.classes[k][row.label], k))))))));
}

function unitTable(found, only) {
  const classesOf = (k) => data.classes.names.map((name, label) => ({ name, value: found.classes[k][label], measured: found.measured[label] }))
    .filter((one) => one.measured && one.value > found.mean[k]).sort((a, b) => b.value - a.value);
  const chip = (k) => ([video, snippet, start, end, similarity]) => h('button', { type: 'button', class: 'moment', title: `similarity ${similarity}`,
    onclick: () => openVideos({ video, time: (start + end) / 2 }) },
  only !== null || found.units.length <= 10 ? momentPicture(video, snippet, found.stream, k) : null,
  `${data.videos.ids[video]} @ ${seconds(start)}`);
  const rows = found.units.map((unit, k) => ({ unit, k })).filter(({ k }) => only === null || only === k);
  return scroll(h('table', {},
    h('caption', {}, 'Leads: the share of snippets whose most similar unit it is. Sharing classes: those whose snippets are more similar to it than snippets are on average. Press a snippet to see it in its video.'),
    h('thead', {}, h('tr', {}, heads(['unit', 'mean', 'leads', 'sharing classes', 'snippets that excite it most'], (index) => ({ class: index > 2 ? 'left' : null })))),
    h('tbody', {}, rows.map(({ unit, k }) => h('tr', {}, h('th', { scope: 'row' }, `unit ${unit + 1}`), h('td', {}, found.mean[k].toFixed(2)), h('td', {}, `${percent(found.leads[k], 0)} %`),
      h('td', { class: 'name left', style: { minWidth: '13rem' } }, classesOf(k).slice(0, only === null ? 5 : 50).map((one) => h('div', {}, one.name, ' ', h('span', { class: 'soft' }, one.value.toFixed(2))))),
      h('td', { class: 'left', style: { whiteSpace: 'normal' } }, h('div', { class: 'chips' }, found.top[k].slice(0, only === null ? 4 : 12).map(chip(k)))))))));
}

/** A small picture of a unit's similarity to the snippets around one of them, which stands in the middle. */
function momentPicture(video, snippet, stream, k) {
  const canvas = h('canvas', { width: 250, height: 44, 'aria-hidden': 'true' });
  unpack(video).then((found) => {
    const values = found.streams.find((one) => one.name === stream).similarity[k], c = canvas.getContext('2d');
    for (let step = -12; step <= 12; step++) {
      const value = values[snippet + step];
      if (value === undefined) continue;
      const high = Math.max(2, (value / 255) * 44);
      c.fillStyle = colour(step ? 'accent' : 'rgb');
      c.fillRect((step + 12) * 10, 44 - high, 9, high);
    }
  });
  return canvas;
}
