// Every class: its average precision, and the precision and recall of its ranking.

function classesView() {
  const { names, instances, detections, ap } = data.classes;
  const rows = names.map((name, index) => ({ name, index }));
  const average = names.map((_, index) => mean(ap.map((of) => of[index])));
  const at = (row) => ap[state.t][row.index];
  const found = (row) => data.classes.places[row.index][state.t].length;
  const search = h('input', { type: 'search', placeholder: 'Search classes (/)', 'aria-label': 'Search classes' });
  const body = h('div', { class: 'scroll', style: { maxHeight: 'calc(100vh - 11rem)' } });
  const side = h('section', { class: 'card w5', style: { position: 'sticky', top: '4.5rem', alignSelf: 'start' } });
  let chosen = null;

  function list() {
    const wanted = search.value.trim().toLowerCase();
    body.replaceChildren(table([
      { title: 'class', value: (row) => row.name.toLowerCase(), cell: (row) => row.name, first: true, kind: 'name' },
      { title: 'instances', value: (row) => instances[row.index], cell: (row) => thousands(instances[row.index]) },
      { title: 'detections', value: (row) => detections[row.index], cell: (row) => thousands(detections[row.index]) },
      { title: 'found', value: (row) => found(row) / instances[row.index], cell: (row) => `${percent(found(row) / instances[row.index], 0)} %` },
      { title: 'average AP', value: (row) => average[row.index], cell: (row) => percent(average[row.index]) },
      { title: `AP @ ${data.overview.tious[state.t]}`, value: at, cell: (row) => percent(at(row)) },
      { title: '', cell: (row) => at(row) > 0 && h('span', { style: { width: `${100 * at(row)}%` } }), kind: 'bar left' },
    ], rows.filter((row) => row.name.toLowerCase().includes(wanted)), { sort: 5, choose: show }));
  }
  function show(row) {
    chosen = row;
    const best = precisions(row.index, state.t), count = instances[row.index];
    const curve = best.flatMap((value, index) => [[index / count, value], [(index + 1) / count, value]]);
    if (curve.length) curve.push([curve.at(-1)[0], 0]);
    const raw = data.classes.places[row.index][state.t].map((place, index) => [(index + 1) / count, (index + 1) / place]);
    side.replaceChildren(h('h2', {}, row.name),
      soft(`AP ${percent(at(row))} % at tIoU ${data.overview.tious[state.t]}: ${found(row)} of ${plural(count, 'instance')} found by ${plural(detections[row.index], 'detection')}.`),
      lines([{ name: 'interpolated precision', points: curve.length ? curve : [[0, 0], [1, 0]] },
        { name: 'precision at each found instance', points: raw, dash: '0 100', colour: 'var(--rgb)', marks: true }],
      { x: [0, 1], y: [0, 1], xTitle: 'recall', yTitle: 'precision', height: 300, label: `Precision and recall of ${row.name}` }),
      h('h3', {}, 'AP by threshold'),
      bars(ap.map((of, t) => ({ name: `tIoU ${data.overview.tious[t]}`, value: of[row.index], text: percent(of[row.index]) })), 'AP by threshold'),
      h('p', {}, h('button', { class: 'link', type: 'button', onclick: () => openVideos({ label: row.index }) }, 'Its videos')));
  }
  search.addEventListener('input', list);
  onThreshold(() => {
    list();
    show(chosen ?? rows.reduce((best, row) => (at(row) > at(best) ? row : best)));
  });
  return h('div', { class: 'grid' }, card(7, null, h('div', { class: 'controls' }, search), body), side);
}
