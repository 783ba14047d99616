function sweepView() {
  return h('div');
}
