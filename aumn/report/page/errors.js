// What goes wrong: kinds of error by rank and by length, and what each costs.

function errorsView() {
  const grid = h('div', { class: 'grid' });
  function draw() {
    const { errors, overview } = data, t = state.t, tiou = overview.tious[t];
    const legend = h('div', { class: 'legend' }, KINDS.slice(0, 6).map((_, index) => kind(index)));
    const groups = errors.profile[t].map((counts, index) => ({ name: `${index + 1}G`, counts })).filter((group) => sum(group.counts));
    const { lengths } = errors;
    const bound = (value) => short(Number(value.toPrecision(3)));
    const between = (low, high) => (low === high ? `${low} s` : `${low}–${high} s`);
    const byLength = lengths.names.map((name, index) => ({ name, counts: lengths.kinds[t][index], missed: lengths.missed[t][index], of: lengths.instances[index],
      under: between(bound(lengths.bounds_s[index]), bound(lengths.bounds_s[index + 1])) })).filter((group) => group.of > 0 || sum(group.counts) > 0);
    const orNone = (columns, options) => (columns.some((column) => sum(column.counts) > 0) ? stacks(columns, options) : soft('There are no detections.'));
    grid.replaceChildren(
      card(7, `Detections by rank, at tIoU ${tiou}`, legend,
        h('figure', { style: { margin: 0 } }, orNone(groups, { label: 'Share of each kind by rank', height: 270, width: 620 }),
          h('figcaption', {}, 'G is the number of instances of a class: 1G are the best G detections of each class, 2G the next G, and so on.')), asTable('rank', groups)),
      card(5, 'What each costs',
        soft('By how many points mAP would rise if this kind of error were not there. Gains do not add up.'),
        bars(errors.gain[t].map((gain, index) => ({ name: kind(index), value: gain, kind: `k${index}`, text: `+${percent(gain)}` })).slice(1), 'mAP gained without each kind of error')),
      card(7, 'Detections by length of their instance',
        orNone(byLength, { label: 'Share of each kind by length', width: 620 }),
        h('p', { class: 'soft', style: { marginTop: '1.1rem' } }, 'Each group is a fifth of the instances, as far as their lengths differ. A detection goes with the instance it overlaps most, or by its own length.'), asTable('length', byLength)),
      card(5, 'Missed instances by length',
        bars(byLength.filter((group) => group.of > 0).map(({ name, under, missed, of }) => ({ name: `${name}  ${under}`, value: missed / of, kind: 'k6',
          text: `${missed} of ${of} (${percent(missed / of, 0)} %)` })), 'Share of instances missed by length', 1)),
      card(12, 'The kinds',
        h('dl', {}, KINDS.map((_, index) => [h('dt', {}, kind(index)), h('dd', {}, MEANINGS[index])])),
        soft('After Alwassel, Heilbron, Escorcia and Ghanem, Diagnosing Error in Temporal Action Detectors, ECCV 2018.')));
  }
  onThreshold(draw);
  return grid;
}

/** The numbers of stacked columns, for whoever reads them rather than sees them. */
function asTable(title, groups) {
  return h('details', {}, h('summary', {}, 'As a table'), scroll(table([
    { title, cell: (group) => `${group.name} ${group.under ?? ''}` },
    ...KINDS.slice(0, 6).map((name, index) => ({ title: name, cell: (group) => thousands(group.counts[index]) })),
  ], groups)));
}
