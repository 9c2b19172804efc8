// Runs before the first paint: sets the chosen language and theme, so that the page does not flash.
(() => {
    const root = document.documentElement;
    let language = null, theme = null;
    try {
        language = localStorage.getItem('firstcome.language');
        theme = localStorage.getItem('firstcome.theme');
    } catch { /* No storage: the defaults hold. */ }
    if (language !== 'ko' && language !== 'en') language = /^ko\b/i.test(navigator.language) ? 'ko' : 'en';
    root.lang = language;
    if (theme === 'light' || theme === 'dark') root.dataset.theme = theme;
    if (location.hash === '#wall') root.classList.add('wall');
})();
