// Before the first paint, so that nothing flashes: the language and the theme that were chosen last.
(() => {
    const root = document.documentElement;
    let language = null, theme = null;
    try {
        language = localStorage.getItem('firstcome.language');
        theme = localStorage.getItem('firstcome.theme');
    } catch { /* A browser that keeps nothing: defaults. */ }
    if (language !== 'ko' && language !== 'en') language = /^ko\b/i.test(navigator.language) ? 'ko' : 'en';
    root.lang = language;
    if (theme === 'light' || theme === 'dark') root.dataset.theme = theme;
    if (location.hash === '#wall') root.classList.add('wall');
})();
