addEventListener('keydown', event => {
  if (event.key !== 'Escape') return;
  document.querySelectorAll('.enlarge:checked').forEach(box => { box.checked = false; });
});
