"""The style sheet that every page carries: wide and narrow windows, light and dark, screen and paper."""

PAGE_STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f6f6f4; --card: #ffffff; --stage: #ecece8; --ink: #1d1f23; --soft: #5b606a; --line: #dcdcd6;
  --accent: #0b5f94; --good: #00694d; --bad: #a83f00;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #141619; --card: #1e2126; --stage: #111316; --ink: #e9eaec; --soft: #a3a9b3; --line: #343941;
    --accent: #7cc4f0; --good: #4fd3aa; --bad: #ff9a5c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 1440px; margin: 0 auto; padding: 24px clamp(12px, 3vw, 40px) 64px; }
h1 { font-size: clamp(1.5rem, 1.1rem + 1.6vw, 2.1rem); line-height: 1.2; margin: 0 0 16px; letter-spacing: -0.01em; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 40px 0 12px; }
h3 { font-size: 1.1rem; line-height: 1.35; margin: 0 0 12px; }
h4 { font-size: 1rem; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 75ch; }
a { color: var(--accent); }
bdi, dd, h3 { overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: 0.875rem; }
aside .soft { margin-top: 10px; }
.path { color: var(--soft); font: 0.75rem/1.45 var(--mono); display: block; }
.number { font-variant-numeric: tabular-nums; }

.facts { display: flex; flex-wrap: wrap; gap: 1px; margin: 0 0 20px;
  background: var(--line); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.facts div { flex: 1 1 150px; background: var(--card); padding: 10px 14px; }
.facts dt { color: var(--soft); font-size: 0.8rem; }
.facts dd { margin: 0; font-weight: 600; }

.contents { columns: 260px; column-gap: 24px; padding-left: 1.4em; margin: 0 0 20px; font-size: 0.925rem; }
.notice { background: var(--card); border-left: 4px solid var(--accent); border-radius: 4px; padding: 12px 16px; }

.scroll { overflow-x: auto; margin: 0 0 20px; }
table { border-collapse: collapse; background: var(--card); font-size: 0.95rem; }
th, td { text-align: left; padding: 7px 14px; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; font-size: 0.8rem; }
tbody th { font-weight: 600; white-space: nowrap; }
.figures :is(td, th):nth-child(2) { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }

.query, .failure { border-top: 1px solid var(--line); padding-top: 24px; margin-top: 24px; }
.beside { display: grid; grid-template-columns: minmax(280px, 400px) minmax(0, 1fr); gap: 28px; align-items: start; }
.beside > aside { position: sticky; top: 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 16px;
  list-style: none; margin: 0; padding: 0; }
.strip { grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; min-width: 0; }
.card .words { padding: 10px 14px 14px; }
.card h4 { display: flex; justify-content: space-between; gap: 12px; margin: 0 0 2px; }
.card .name { display: block; font-weight: 600; font-size: 0.875rem; }

figure { margin: 0; }
.stage { background: var(--stage); display: flex; align-items: center; justify-content: center; min-height: 120px; }
.stage img { display: block; max-width: 100%; max-height: 440px; width: auto; height: auto; }
.card .stage { height: 230px; }
.card .stage img { max-height: 230px; }
.stage img.framed { border: 5px solid; }
.missing { color: var(--soft); font-size: 0.875rem; padding: 24px; margin: 0; text-align: center;
  overflow-wrap: anywhere; }
.missing strong { display: block; color: var(--ink); }
figcaption { color: var(--soft); font-size: 0.8rem; padding: 4px 0 0; }
.card figcaption { padding: 4px 14px 0; }

.regions { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; margin: 12px 0; padding: 0;
  font-size: 0.9rem; }
.pairs { list-style: none; margin: 12px 0 0; padding: 0; font-size: 0.9rem; }
.pairs li { display: flex; gap: 8px; align-items: center; padding: 3px 0; }
.pairs .number { margin-left: auto; }
.crop { display: inline-flex; align-items: center; justify-content: center; width: 68px; height: 60px;
  background: var(--stage); border-radius: 3px; overflow: hidden; color: var(--soft); font-size: 0.75rem; }
.crop img { display: block; max-width: 68px; max-height: 60px; width: auto; height: auto; }
.swatch { display: inline-block; min-width: 1.6em; padding: 0 0.4em; border-radius: 3px; text-align: center;
  font-weight: 700; font-size: 0.8rem; line-height: 1.6; white-space: nowrap; }
.role { font-weight: 600; }
.good { color: var(--good); }
.bad { color: var(--bad); }

.save { font-weight: 600; }
.layers { position: relative; line-height: 0; }
.layers svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.area polygon { fill: var(--color); fill-opacity: 0.38; stroke: var(--color); stroke-width: 3; stroke-linejoin: round; }
.outline polygon { fill-opacity: 0.12; stroke-width: 4; }
.area:hover polygon, .area:focus polygon { fill-opacity: 0.65; }
.area circle { fill: var(--color); stroke: #000; }
.area text { font: 700 15px system-ui, sans-serif; text-anchor: middle; dominant-baseline: central; }
.parts { list-style: none; margin: 0; padding: 0; }
.parts li { padding: 8px 0; border-bottom: 1px solid var(--line); }
.source { border-top: 1px solid var(--line); padding-top: 24px; margin-top: 24px; }
.source:target { outline: 3px solid var(--accent); outline-offset: 12px; border-radius: 4px; }
.source img { max-width: 100%; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 16px; }
.slider { position: relative; --split: 50%; line-height: 0; }
.slider img { position: absolute; inset: 0; width: 100%; height: 100%; }
.slider .over { clip-path: inset(0 calc(100% - var(--split)) 0 0); }
.slider::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--split); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 0 1px #000; pointer-events: none; }
.slider input { position: absolute; left: 0; right: 0; bottom: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; }
.slider input:focus-visible { opacity: 0.5; }

@media (max-width: 820px) {
  .beside { grid-template-columns: minmax(0, 1fr); }
  .beside > aside { position: static; }
  .card .stage { height: auto; }
  .card .stage img { max-height: 340px; }
}
@media (max-width: 560px) {
  .figures, .figures tbody { display: block; }
  .figures thead { display: none; }
  .figures tr { display: grid; grid-template-columns: 1fr auto; border-bottom: 1px solid var(--line); }
  .figures :is(td, th) { border: 0; }
  .figures td:nth-child(3) { grid-column: 1 / -1; padding-top: 0; color: var(--soft); font-size: 0.875rem; }
}
@media print {
  body { background: none; }
  .card, .failure { break-inside: avoid; }
  .beside > aside { position: static; }
}
"""
