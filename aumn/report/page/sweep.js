// Several runs: mAP by setting, over K (the paper's Figure 4), and by what was left out (its Table 4).

const ABLATED = [
  ['sparsity Ls', (value) => Object.values(value('loss.sparsity')).some((weight) => weight > 0)],
  ['diversity Ld', (value) => value('loss.diversity') > 0],
  ['homogeneity Lh', (value) => value('loss.homogeneity') > 0],
  ['self-attention', (value) => value('model.self_attention')],
];
const isAblated = (name) => name.startsWith('loss.') || name === 'model.self_attention';

function sweepView() {
  const { sweep } = data;
  const overUnits = sweep.differing.includes('model.units'), ablated = sweep.differing.some(isAblated), width = overUnits && ablated ? 6 : 12;
  const runs = sum(sweep.groups.map((group) => group.runs.length));
  const intro = card(12, 'Runs side by side',
    h('p', {}, `${plural(runs, 'run')}, ${plural(sweep.groups.length, 'setting')}. mAP in percent on ${sweep.measured.replace('_', ' ')} videos, at each run’s last step; `
      + 'mean and sample standard deviation over seeds.'),
    soft(`Trained on ${sweep.data.join(' and on ')}.${sweep.data.length > 1 ? ' These are different data: compare with care.' : ''}`));
  return h('div', { class: 'grid' }, intro,
    overUnits && card(width, 'mAP by number of action units K', unitsFigure()),
    ablated && card(width, 'What each part adds', ablationTable()),
    card(12, 'Every setting', scroll(settingsTable())), card(12, 'Every run', scroll(runsTable())));
}

const average = (group) => group.mean?.at(-1);
const measuredGroups = () => data.sweep.groups.filter((group) => group.mean !== null);
const spread = (group, index) => (group.mean ? percent(group.mean.at(index)) + (group.deviation ? ` ± ${percent(group.deviation.at(index))}` : '') : '–');
const text = (value) => (value === true ? 'on' : value === false ? 'off' : value === null ? 'none'
  : typeof value === 'object' ? Object.entries(value).map(([name, one]) => (name === 'default' ? text(one) : `${name} ${text(one)}`)).join(', ') || 'default' : String(value));
const settingOf = (group, name) => (name in group.settings ? group.settings[name] : data.sweep.common[name]);

/** Average mAP over K, a line for each combination of the other settings, with whiskers of one deviation. */
function unitsFigure() {
  const others = data.sweep.differing.filter((name) => name !== 'model.units'), series = new Map();
  for (const group of measuredGroups()) {
    const name = others.map((other) => `${other.split('.').at(-1)} ${text(group.settings[other])}`).join(', ') || 'average mAP';
    if (!series.has(name)) series.set(name, []);
    series.get(name).push(group);
  }
  const counts = [...new Set(data.sweep.groups.map((group) => group.settings['model.units']))].sort((a, b) => a - b);
  const log = counts.at(-1) / counts[0] > 20, X = (units) => (log ? Math.log2(units) : units);
  const drawn = [...series].map(([name, groups]) => ({ name, marks: true,
    points: groups.sort((a, b) => a.settings['model.units'] - b.settings['model.units']).map((group) => [X(group.settings['model.units']), 100 * average(group), spread(group, -1), 100 * (group.deviation?.at(-1) ?? 0)]) }));
  const top = 1.08 * Math.max(1, ...measuredGroups().map((group) => 100 * (average(group) + (group.deviation?.at(-1) ?? 0))));
  const shown = counts.length > 9 ? counts.filter((units, index) => !log || index === 0 || X(units) - X(counts[index - 1]) > 0.7 || Number.isInteger(X(units))) : counts;
  const figure = lines(drawn, { x: [X(counts[0]) - 0.2, X(counts.at(-1)) + 0.2], y: [0, top], xTicks: shown.map(X), xText: (x) => thousands(Math.round(log ? 2 ** x : x)),
    xTitle: log ? 'K, a logarithmic scale' : 'K', yTitle: 'average mAP, %', height: 290, width: 560, label: 'Average mAP over the number of action units' });
  return h('figure', { style: { margin: 0, maxWidth: '50rem' } }, figure, drawn.length > 1 ? key(drawn) : null);
}

/** As the paper's Table 4: a mark for each part that is there. */
function ablationTable() {
  const others = data.sweep.differing.filter((name) => !isAblated(name));
  const groups = [...data.sweep.groups].sort((a, b) => sum(ABLATED.map(([, has]) => has((name) => settingOf(a, name)) - has((name) => settingOf(b, name)))) || (average(a) ?? 0) - (average(b) ?? 0));
  return scroll(h('table', { id: 'ablation' },
    h('caption', {}, 'A dot: the part is there. The average is over all thresholds.'),
    h('thead', {}, h('tr', {}, heads([...ABLATED.map(([name]) => name), ...others, 'average mAP', '']))),
    h('tbody', {}, groups.map((group) => h('tr', {}, ABLATED.map(([name, has], index) => {
      const on = has((setting) => settingOf(group, setting));
      return h(index ? 'td' : 'th', { scope: index ? null : 'row', style: { textAlign: 'center' }, 'aria-label': `${name} ${on ? 'on' : 'off'}` }, on ? '●' : '○');
    }), others.map((name) => h('td', {}, text(group.settings[name]))), h('td', {}, spread(group, -1)),
    h('td', { class: 'bar left' }, h('span', { style: { width: `${100 * (average(group) ?? 0) / Math.max(...data.sweep.groups.map((one) => average(one) ?? 0), 1e-9)}%` } })))))));
}

function settingsTable() {
  const { differing, tious } = data.sweep;
  const column = (name, index) => ({ title: name, value: (group) => group.mean?.at(index) ?? -1, cell: (group) => spread(group, index) });
  return table([
    ...(differing.length ? differing : ['settings']).map((name, index) => ({ title: name, value: (group) => group.settings[name], first: true, left: index > 0,
      cell: (group) => (differing.length ? text(group.settings[name]) : 'the same') })),
    { title: 'runs', value: (group) => group.runs.length, cell: (group) => group.runs.length },
    ...tious.map((tiou, index) => column(`mAP @ ${tiou}`, index)), column('average', tious.length),
  ], data.sweep.groups, { sort: 0, descending: false });
}

function runsTable() {
  const { tious } = data.sweep;
  return table([
    { title: 'run', value: (run) => run.folder, cell: (run) => run.folder, first: true, kind: 'name' },
    { title: 'seed', value: (run) => run.seed, cell: (run) => run.seed, first: true },
    { title: 'step', value: (run) => run.step, cell: (run) => `${thousands(run.step)} of ${thousands(run.steps)}` },
    ...[...tious, 'average'].map((name, index) => ({ title: index < tious.length ? `mAP @ ${name}` : name, value: (run) => run.map?.[index] ?? -1,
      cell: (run) => (run.map ? percent(run.map[index]) : 'not measured') })),
  ], data.sweep.groups.flatMap((group) => group.runs), { sort: 0, descending: false });
}
