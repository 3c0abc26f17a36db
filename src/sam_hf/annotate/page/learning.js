// Tells what is learned meanwhile, and offers the better model.

const INTERVAL = 3000;

// attempt(action) runs what may fail, and tells; begin() is what comes before another model is taken, reopen() after it.
export function watchLearning(backend, { attempt, begin, reopen }) {
  const panel = document.getElementById('learning');
  if (!backend.learned) return;
  const show = (status) => {
    panel.hidden = !status.text;
    panel.querySelector('span').textContent = status.text ?? '';
    panel.querySelector('button').hidden = !status.isBetter;
  };
  panel.querySelector('button').onclick = () => attempt(async () => {
    await begin();
    show(await backend.useLearned());
    await reopen();
  });
  const ask = async () => {
    try {
      const status = await backend.learned();
      if (!status.isOn) return;
      show(status);
    } catch {
      // The server is away; a click will tell.
    }
    setTimeout(ask, INTERVAL);
  };
  ask();
}
