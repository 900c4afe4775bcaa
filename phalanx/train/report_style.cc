#include "phalanx/train/report_style.h"

namespace phalanx {

std::string_view report_style() {
  return R"css(
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --muted: #59626e; --rule: #e3e6ea;
  --axis: #98a1ac; --card: #f6f7f9; --even: #edeff2; --above: #b5420a; --below: #0b4f8a;
  --on-strong: #fff; --on-middle: #1b1f24;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9; --c6: #e3d02a;
  --c7: #9aa1ab; --on0: #fff; --on: #14171a; --alert: #c1121f; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e4e7eb; --muted: #9ba4b0; --rule: #2a2f36; --axis: #5d6672;
    --card: #1c2026; --even: #252a31; --above: #f2a263; --below: #6fb7f2; --on-strong: #111417;
    --on-middle: #111417;
    --c0: #4ba3db; --c1: #f0803c; --c2: #2bbd92; --c3: #d78fb6; --c4: #ebb13a; --c5: #8accf2; --c6: #eee06a;
    --c7: #7d8590; --on0: #14171a; --alert: #ff6b6b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 24px 48px; max-width: 1080px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { margin: 0; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 40px 0 8px; padding-top: 14px; border-top: 1px solid var(--rule); font-size: 18px; }
p { margin: 6px 0; }
.sub, .note, figcaption span { color: var(--muted); }
.note { font-size: 13px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 12px;
  margin: 20px 0 0; }
dl div { padding: 10px 14px; border-radius: 6px; background: var(--card); }
dt { color: var(--muted); font-size: 13px; }
dd { margin: 0; font-size: 21px; font-weight: 600; line-height: 1.3; }
dd small { display: block; color: var(--muted); font-size: 13px; font-weight: 400; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 0 20px; }
figure { margin: 14px 0 0; break-inside: avoid; }
figcaption { margin-bottom: 4px; font-weight: 600; }
figcaption span { margin-left: 6px; font-size: 13px; font-weight: 400; }
svg { display: block; width: 100%; height: auto; overflow: visible; font-size: 13px; }
svg text { fill: var(--muted); }
svg .value, svg .weak { fill: var(--ink); }
svg .value { font-weight: 600; }
svg .middle { fill: var(--on-middle); }
svg .strong { fill: var(--on-strong); }
.grid { stroke: var(--rule); }
.axis { stroke: var(--axis); fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.raw { stroke-width: 1; stroke-opacity: .45; }
.smooth { stroke-width: 2.2; }
.point { fill: none; stroke-width: 7; stroke-linecap: round; }
.key { stroke-width: 4; stroke-linecap: round; }
.beyond { fill: var(--alert); }
.gap { fill: none; stroke: var(--alert); stroke-width: 1.5; }
.heat path { fill: none; shape-rendering: crispEdges; }
.even { stroke: var(--even); }
.above { stroke: var(--above); }
.below { stroke: var(--below); }
.within { fill: var(--muted); }
.bubble { fill: var(--even); stroke: var(--axis); stroke-width: .5; stroke-dasharray: 2 3; }
.more { fill-opacity: .55; }
.cursor { stroke: var(--axis); stroke-dasharray: 3 3; }
.read { fill: var(--ink); stroke: var(--page); stroke-width: 4; paint-order: stroke; font-weight: 600; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); }
.s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); } .s6 { stroke: var(--c6); } .s7 { stroke: var(--c7); }
.f0 { fill: var(--c0); } .f1 { fill: var(--c1); } .f2 { fill: var(--c2); } .f3 { fill: var(--c3); }
.f4 { fill: var(--c4); } .f5 { fill: var(--c5); } .f6 { fill: var(--c6); } .f7 { fill: var(--c7); }
.f8 { fill: var(--axis); }
svg .on0 { fill: var(--on0); }
svg .on1, svg .on2, svg .on3, svg .on4, svg .on5, svg .on6, svg .on7, svg .on8 { fill: var(--on); }
table { border-collapse: collapse; margin-top: 10px; min-width: 420px; break-inside: avoid; }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule); text-align: right; font-weight: 400; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--muted); font-size: 13px; }
tr.whole td { font-weight: 600; }
td svg { display: inline-block; width: 12px; height: 12px; margin-right: 8px; }
pre { margin: 10px 0 0; padding: 14px 16px; border-radius: 6px; background: var(--card);
  overflow-wrap: anywhere; white-space: pre-wrap;
  font: 13.5px/1.55 ui-monospace, "DejaVu Sans Mono", "Liberation Mono", monospace; }
summary { cursor: pointer; font-size: 18px; font-weight: 600; }
details { margin-top: 40px; padding-top: 14px; border-top: 1px solid var(--rule); }
@media print {
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { padding: 0; font-size: 12px; }
  h2 { break-after: avoid; }
}
)css";
}

std::string_view report_script() {
  return R"js(
'use strict';
const numbers = text => text.split(' ').map(Number);
const short = v => String(Number(v.toPrecision(4)));
function add(svg, name, attributes) {
  const e = document.createElementNS(svg.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  return svg.appendChild(e);
}
function follow(svg, read) {  // read(x, y) gives [text, x of a line or none], or nothing outside
  const text = add(svg, 'text', {class: 'read', y: 14});
  const cursor = add(svg, 'path', {class: 'cursor'});
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
    const x = (event.clientX - box.left) * view.width / box.width;
    const [words, line, bottom] = read(x, (event.clientY - box.top) * view.height / box.height) || [''];
    text.textContent = words;
    text.setAttribute('x', x < view.width / 2 ? x + 10 : x - 10);
    text.setAttribute('text-anchor', x < view.width / 2 ? 'start' : 'end');
    cursor.setAttribute('d', line === undefined ? '' : `M${line} 8V${bottom}`);
  });
  svg.addEventListener('pointerleave', () => { text.textContent = ''; cursor.setAttribute('d', ''); });
}
for (const svg of document.querySelectorAll('svg[data-frame]')) {
  const [left, top, right, bottom, x0, x1, y0, y1] = numbers(svg.dataset.frame);
  const lines = Array.from(svg.querySelectorAll('.line'), path => ({name: path.dataset.name,
    points: Array.from(path.getAttribute('d').matchAll(/([\d.]+) ([\d.]+)/g), m => m.slice(1).map(Number))}));
  follow(svg, x => {
    if (x < left - 5 || x > right + 5) return;
    const step = x0 + (x - left) / (right - left) * (x1 - x0);
    const words = lines.map(({name, points}) => {
      const near = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      return (name && name + ': ') + short(y0 + (bottom - near[1]) / (bottom - top) * (y1 - y0));
    });
    return [`step ${Math.round(step)} · ${words.join(' · ')}`, x, bottom];
  });
}
for (const svg of document.querySelectorAll('svg[data-cells]')) {
  const [left, top, width, height, group] = numbers(svg.dataset.cells);
  const rows = Array.from(svg.querySelectorAll('[data-loads]'), row => row.dataset.loads.split(' '));
  const [rowName, columnName] = svg.dataset.names.split(', ');
  follow(svg, (x, y) => {
    const row = Math.floor((y - top) / height), column = Math.floor((x - left) / width);
    const load = rows[row] && rows[row][column];
    if (load) return [`${rowName} ${row}, ${columnName} ${column * group}: ${load}`];
  });
}
)js";
}

}  // namespace phalanx
