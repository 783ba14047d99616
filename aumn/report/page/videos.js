// The videos: a list to search, filter and sort, and one of them to look into.

const ROW = 46;
let videosApi = null;

const SORTS = {
  'name': [(v) => data.videos.ids[v], false],
  'most missed': [(v) => data.videos.instances[v] - data.videos.found[state.t][v], true],
  'most false positives': [(v) => data.videos.detections[v] - data.videos.found[state.t][v], true],
  'share found': [(v) => (data.videos.instances[v] ? data.videos.found[state.t][v] / data.videos.instances[v] : -1), true],
  'most instances': [(v) => data.videos.instances[v], true],
  'longest': [(v) => data.videos.duration_s[v], true],
};
const FILTERS = {
  'all videos': () => true,
  'something missed': (v) => data.videos.found[state.t][v] < data.videos.instances[v],
  'everything found': (v) => data.videos.instances[v] > 0 && data.videos.found[state.t][v] === data.videos.instances[v],
  'nothing found': (v) => data.videos.instances[v] > 0 && data.videos.found[state.t][v] === 0,
  'false positives': (v) => data.videos.detections[v] > data.videos.found[state.t][v],
  'no detection': (v) => data.videos.detections[v] === 0,
};

function videosView() {
  const { videos } = data;
  const search = h('input', { type: 'search', placeholder: 'Search videos and classes (/)', 'aria-label': 'Search videos and classes' });
  const option = (text, value = text) => h('option', { value }, text);
  const ofClass = h('select', { 'aria-label': 'Class' }, option('every class', ''), data.classes.names.map((name, label) => option(name, label)));
  const filter = h('select', { 'aria-label': 'Filter' }, Object.keys(FILTERS).map((name) => option(name)));
  const sort = h('select', { 'aria-label': 'Sort' }, Object.keys(SORTS).map((name) => option(name)));
  const reverse = h('button', { type: 'button', 'aria-pressed': 'false', title: 'Reverse the order', style: { flex: '0 0 2.2rem' } }, '⇅');
  const count = h('div', { class: 'soft', role: 'status' });
  const list = h('div', { class: 'list', role: 'listbox', tabindex: '0', 'aria-label': 'Videos' });
  const filler = h('div', { 'aria-hidden': 'true', style: { pointerEvents: 'none', border: '0', padding: '0', width: '1px' } });
  const detail = h('section', { class: 'card detail', 'aria-label': 'Video' });
  const texts = videos.ids.map((id, v) => `${id} ${videos.labels[v].map((label) => data.names[label]).join(' ')}`.toLowerCase());
  let order = [], chosen = -1, reversed = false;

  function refresh() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const label = ofClass.value === '' ? null : Number(ofClass.value);
    const keep = FILTERS[filter.value];
    order = videos.ids.map((_, v) => v).filter((v) => keep(v) && (label === null || videos.labels[v].includes(label))
      && words.every((word) => texts[v].includes(word)));
    const [value, down] = SORTS[sort.value];
    const values = new Map(order.map((v) => [v, value(v)]));
    const sign = down === reversed ? 1 : -1;
    order.sort((a, b) => (values.get(a) < values.get(b) ? -1 : values.get(a) > values.get(b) ? 1 : 0) * sign || a - b);
    count.textContent = `${thousands(order.length)} of ${plural(videos.ids.length, 'video')}`;
    filler.style.height = `${order.length * ROW}px`;
    list.scrollTop = Math.max(0, order.indexOf(chosen) * ROW - 4 * ROW);
    drawList();
    if (order.length && !order.includes(chosen)) pick(order[0]);
  }
  /** Only the rows in sight are elements, whatever the number of videos. */
  function drawList() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 3), last = Math.min(order.length, first + Math.ceil((list.clientHeight || 600) / ROW) + 6);
    const rows = order.slice(first, last).map((v, index) => h('div', { role: 'option', id: `video-${v}`, 'aria-selected': String(v === chosen),
      'aria-posinset': first + index + 1, 'aria-setsize': order.length, style: { top: `${(first + index) * ROW}px` }, onclick: () => pick(v) },
    h('b', {}, videos.ids[v]),
    h('span', { class: 'meter' }, `${videos.found[state.t][v]}/${videos.instances[v]} found`),
    h('small', {}, `${seconds(videos.duration_s[v])} · ${videos.labels[v].map((label) => data.names[label]).join(', ') || 'nothing annotated'}`)));
    list.replaceChildren(filler, ...rows);
    list.setAttribute('aria-activedescendant', `video-${chosen}`);
  }
  function pick(v, at = null) {
    chosen = v;
    const place = order.indexOf(v) * ROW;
    if (place >= 0 && (place < list.scrollTop || place + ROW > list.scrollTop + list.clientHeight)) list.scrollTop = place - list.clientHeight / 2 + ROW;
    drawList();
    remember(`videos/${encodeURIComponent(videos.ids[v])}`);
    detail.scrollTop = 0;
    return showVideo(detail, v, at);
  }
  function move(step) {
    const next = order[Math.min(order.length - 1, Math.max(0, order.indexOf(chosen) + step))];
    if (next !== undefined && next !== chosen) pick(next);
  }

  list.addEventListener('scroll', drawList, { passive: true });
  list.addEventListener('keydown', (event) => onKeys(event, { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }, move));
  search.addEventListener('input', refresh);
  for (const select of [ofClass, filter, sort]) select.addEventListener('change', refresh);
  reverse.addEventListener('click', () => {
    reversed = !reversed;
    reverse.setAttribute('aria-pressed', String(reversed));
    refresh();
  });
  onChange((changes) => {
    if (!('t' in changes) || chosen < 0) return;
    refresh();
    player?.update();
  });

  const view = h('div', { class: 'pane' },
    h('section', { class: 'card side', 'aria-label': 'Choose a video' }, search, h('div', { class: 'row' }, ofClass, filter), h('div', { class: 'row' }, sort, reverse), count, list), detail);
  videosApi = { move, pick, refresh, search, only(label) {
    ofClass.value = label;
    filter.value = 'all videos';
    search.value = '';
    refresh();
  } };
  return view;
}

/** Open the list at a video and a time, or on one class. */
function openVideos({ video = null, time = null, label = null }) {
  openTab('videos');
  if (label !== null) videosApi.only(label);
  if (video !== null) videosApi.pick(video, time);
}

let player = null;

async function showVideo(detail, index, at) {
  const { videos } = data;
  const video = await unpack(index).catch((error) => {
    detail.replaceChildren(h('p', {}, `This video cannot be unpacked (${error.message}): open the page in a browser of 2023 or later.`));
    throw error;
  });
  const end = Math.max(videos.duration_s[index], ...video.gt.map((row) => row[2]), ...video.det.map((row) => row[3]), ...video.streams.map((one) => one.first_s + one.snippets * one.snippet_s)) || 1;
  const snippet_s = video.streams[0]?.snippet_s ?? end / 200;
  const kept = video.streams[0]?.classes ?? [];
  const first = video.gt.map((row) => row[0]).find((label) => kept.includes(label)) ?? video.det[0]?.[0] ?? kept[0] ?? -1;
  const view = { from: 0, to: end, label: player && kept.includes(player.view.label) && player.pinned ? player.view.label : first, all: player?.view.all ?? false };
  const canvas = h('canvas', { role: 'img', 'aria-label': `Timeline of ${videos.ids[index]}; the tables below say the same` });
  const cursor = h('div', { class: 'cursor' });
  const stage = h('div', { class: 'stage' }, canvas, cursor);
  const readout = h('div', { class: 'readout', role: 'status' });
  const select = h('select', { id: 'cas' }, kept.map((label, k) => h('option', { value: label }, `${data.names[label]} (${score(video, k)})`)));
  select.value = view.label;
  const chips = h('div', { class: 'chips' });
  const tables = h('div', { class: 'two' });
  let scale = null, time = at ?? 0;

  function draw() {
    scale = drawVideo(canvas, video, view);
    chips.replaceChildren(...summary(video));
    place();
  }
  function place() {
    const x = scale.X(time);
    cursor.style.left = `${x}px`;
    cursor.hidden = x < GUTTER - 1;
    readout.replaceChildren(...reading(video, view, time));
  }
  function seek(to) {
    time = Math.min(end, Math.max(0, to));
    if (time >= view.from && time <= view.to) place();
    else show(view.to - view.from, 0.5);
  }
  /** So many seconds, with the cursor at this share of them. */
  function show(span, share) {
    view.from = Math.min(end - span, Math.max(0, time - span * share));
    view.to = view.from + span;
    draw();
  }
  const zoom = (factor) => show(Math.min(end, Math.max(5 * snippet_s, (view.to - view.from) * factor)), (time - view.from) / (view.to - view.from));
  function choose(label) {
    view.label = label;
    select.value = label;
    player.pinned = true;
    draw();
  }
  const film = data.films?.[index] ? h('video', { class: 'film', controls: true, preload: 'metadata', src: data.films[index] }) : null;
  let last = null;
  film?.addEventListener('timeupdate', () => {
    if (last !== null && film.currentTime >= last) { film.pause(); last = null; }
    if (!film.paused) seek(film.currentTime);
  });
  film?.addEventListener('error', () => film.replaceWith(h('p', { class: 'soft' }, `${decodeURIComponent(data.films[index])} is not there any more, or is nothing that this browser plays.`)));
  /** From a moment on, to an end or the video's own. */
  function play(from, to) {
    seek(from);
    if (!film) return;
    film.scrollIntoView({ block: 'nearest' });
    film.currentTime = from;
    last = to;
    film.play().catch(() => {});
  }
  stage.addEventListener('click', (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const bar = scale.bars.findLast((one) => x >= one.x && x <= one.x + one.width && y >= one.y && y <= one.y + one.height);
    if (bar) play(bar.start, bar.end);
    else if (film && x >= GUTTER) film.currentTime = Math.max(0, scale.time(x));
  });
  stage.addEventListener('pointermove', (event) => seek(scale.time(event.clientX - canvas.getBoundingClientRect().left)));
  stage.addEventListener('wheel', (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 0.8 : 1.25);
  }, { passive: false });
  select.addEventListener('change', () => choose(Number(select.value)));
  const button = (text, title, action) => h('button', { type: 'button', title, 'aria-label': title, onclick: action }, text);
  const toggleAll = () => { view.all = !view.all; draw(); };
  player = { view, draw, seek, zoom, toggleAll, time: () => time, snippet_s, pinned: player?.pinned ?? false,
    toggleFilm() { if (film) { last = null; film[film.paused ? 'play' : 'pause'](); } },
    nextClass(step) { if (kept.length) choose(kept[(kept.indexOf(view.label) + step + kept.length) % kept.length]); } };
  player.update = () => {
    tables.replaceChildren(...eventTables(video, play));
    draw();
  };
  detail.replaceChildren(h('header', {}, h('h2', {}, videos.ids[index]), chips),
    h('div', { class: 'controls' }, kept.length ? h('label', {}, 'CAS of ', select) : null,
      button('−', 'Zoom out (−)', () => zoom(2)), button('+', 'Zoom in (+)', () => zoom(0.5)), button('whole video', 'Whole video (0)', () => zoom(1e9)), button('all detections', 'All detections (a)', toggleAll)),
    ...(film ? [film] : []), readout, stage,
    h('details', { open: true }, h('summary', {}, 'Instances and detections as tables'), tables));
  player.update();
  if (at !== null) seek(at);
}

/** A class's video-level score, the streams weighed as localization weighs them. */
function score(video, k) {
  return sum(video.streams.map((one) => data.weights[one.name] * one.video[k])).toFixed(2);
}

function summary(video) {
  const counts = new Array(7).fill(0);
  for (const row of video.det) counts[row[4][state.t]]++;
  counts[6] = video.gt.filter((row) => !row[3][state.t]).length;
  return counts.map((count, index) => count > 0 && h('span', {}, kind(index, `${count} ${KINDS[index]}`))).filter(Boolean);
}

/** What there is at a moment, in words. */
function reading(video, view, time) {
  const parts = [h('span', {}, h('b', {}, seconds(time)))];
  video.streams.forEach((one) => {
    const t = Math.max(0, Math.min(one.snippets - 1, Math.floor((time - one.first_s) / one.snippet_s))), kept = one.classes.indexOf(view.label);
    const best = one.similarity.reduce((top, values, k) => (values[t] > one.similarity[top][t] ? k : top), 0);
    parts.push(h('span', {}, h('b', {}, one.name.toUpperCase()), ` snippet ${t}: attention ${(one.attention[t] / 255).toFixed(2)}`
      + (kept >= 0 ? `, CAS ${(one.cas[kept][t] / 255).toFixed(2)}` : '') + (one.units.length ? `, unit ${one.units[best] + 1} (${(one.similarity[best][t] / 255).toFixed(2)})` : '')));
  });
  const here = video.gt.filter((row) => row[1] <= time && time < row[2]).map((row) => data.names[row[0]]);
  if (here.length) parts.push(h('span', {}, h('b', {}, 'annotated '), [...new Set(here)].join(', ')));
  const found = video.det.filter((row) => row[2] <= time && time < row[3]).slice(0, 3);
  if (found.length) parts.push(h('span', {}, h('b', {}, 'detected '), found.map((row) => `${data.names[row[0]]} ${short(row[1])}`).join(', ')));
  return parts;
}

function eventTables(video, play) {
  const moment = (start, end) => h('button', { class: 'link', type: 'button', onclick: () => play(start, end) }, `${seconds(start)} – ${seconds(end)}`);
  const named = (title) => ({ title, value: (row) => data.names[row[0]], cell: (row) => data.names[row[0]], first: true, kind: 'name' });
  const instances = table([
    named('instance'),
    { title: 'time', value: (row) => row[1], cell: (row) => moment(row[1], row[2]), first: true },
    { title: 'status', left: true, value: (row) => row[3][state.t], cell: (row) => (row[3][state.t] ? kind(0, 'found') : kind(6)) },
  ], video.gt, { sort: 1, descending: false });
  const detections = table([
    named('detection'),
    { title: 'score', value: (row) => row[1], cell: (row) => short(row[1]) },
    { title: 'time', value: (row) => row[2], cell: (row) => moment(row[2], row[3]), first: true },
    { title: 'kind', left: true, value: (row) => row[4][state.t], cell: (row) => kind(row[4][state.t]), first: true },
  ], video.det.slice(0, 200), { sort: 1, caption: video.det.length > 200 ? `The best 200 of ${thousands(video.det.length)}` : null });
  return [scroll(instances), scroll(detections)];
}
