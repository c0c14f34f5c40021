(() => {
  const body = document.querySelector('.claims tbody');
  if (!body) return;
  const rows = [...body.rows], heads = [...document.querySelectorAll('.claims thead th')];
  const next = { none: 'ascending', ascending: 'descending', descending: 'none' };
  const sign = { none: 0, ascending: 1, descending: -1 };
  const compare = (one, other, way) => {
    if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
    return way * (Number(one) - Number(other));
  };
  heads.forEach((head, column) => {
    const button = head.querySelector('button'), rank = row => row.cells[column].dataset.rank;
    button.disabled = false;
    button.addEventListener('click', () => {
      const order = next[head.getAttribute('aria-sort')], way = sign[order];
      heads.forEach(other => other.setAttribute('aria-sort', other === head ? order : 'none'));
      body.append(...(way ? [...rows].sort((a, b) => compare(rank(a), rank(b), way)) : rows));
    });
  });
})();
