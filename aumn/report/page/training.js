// Curves recorded while training: a small chart for each quantity, streams together.

function trainingView() {
  const { training } = data;
  const note = training.note !== null && card(12, null, h('p', {}, training.note));
  const groups = new Map(), streams = Object.keys(training.curves).filter((name) => name.endsWith('/total')).map((name) => name.slice(0, -6));
  for (const [name, [steps, values]] of Object.entries(training.curves)) {
    const cut = name.indexOf('/'), stream = streams.includes(name.slice(0, cut)) ? name.slice(0, cut) : null, place = streams.indexOf(stream);
    const own = { own_s: 'median rank', slowest_own_s: 'slowest rank' }[name];
    const title = own ? 'own seconds a step' : stream ? name.slice(cut + 1) : name.includes('/mAP/') ? `mAP on ${name.slice(0, cut).replace('_', ' ')} videos` : name;
    const label = own ?? stream ?? (name.includes('/mAP/') ? name.split('/').at(-1) : name);
    if (!groups.has(title)) groups.set(title, []);
    groups.get(title).push({ name: label, points: steps.map((step, index) => [step, values[index]]),
      ...(label === 'average' ? { width: 2.8, colour: 'var(--ink)', dash: '' } : {}), marks: steps.length < 6,
      ...(stream ? { colour: `var(--${streamInk(stream, place)})`, dash: streamDash(place) } : {}) });
  }
  const first = ['loss', 'total', 'classification', 'attention_mean'];
  const rank = ([title]) => (title.startsWith('mAP') ? -1 : first.includes(title) ? first.indexOf(title) : first.length);
  const cards = [...groups].sort((a, b) => rank(a) - rank(b)).map(([title, series]) => {
    const drawn = series.filter((one) => one.points.some((point) => point[1] !== null));
    return card(4, title.replace(/_/g, ' '), drawn.length === 0 ? soft('Never a finite number.')
      : h('figure', { style: { margin: 0 } }, lines(drawn, { yText: title.startsWith('mAP') ? (value) => `${short(100 * value)} %` : short, xTitle: 'step', width: 420, height: 210, label: `${title} over steps` }), drawn.length > 1 || drawn[0].name !== title ? key(drawn) : null));
  });
  return h('div', { class: 'grid' }, note, cards);
}
