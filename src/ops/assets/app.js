// Shows each snapshot as it comes.
const shown = document.getElementById('snapshot');
const feed = new EventSource('/ops/feed');
feed.addEventListener('snapshot', (event) => {
  shown.textContent = JSON.stringify(JSON.parse(event.data), null, 2);
});
feed.addEventListener('error', () => {
  shown.textContent = feed.readyState === EventSource.CLOSED ? '401' : '…';
});
