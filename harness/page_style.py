"""The look of the leaderboard page, and the script that sorts its tables."""

STYLE = """
:root{--bg:#fbfbf9;--card:#fff;--ink:#1b1b19;--soft:#66655f;--line:#e5e4de;--axis:#dcdbd4;--heat:#2a78b8;
--source:#85847c;--trained:#4d7d77;--merged:#0a6fb4;--fused:#c4560a;--routed:#8a6d00;--ensemble:#95508b;--good:#1b7a3d}
@media (prefers-color-scheme:dark){:root{--bg:#151514;--card:#1c1c1a;--ink:#ebeae5;--soft:#a09f97;--line:#32312d;
--axis:#3a3934;--heat:#5aa7e0;--source:#9d9c93;--trained:#74b3ab;--merged:#5db1ee;--fused:#f08f45;--routed:#d3b23c;--ensemble:#cf8dc4;
--good:#6ecb8b}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","Noto Sans","DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1280px;margin:0 auto;padding:40px 28px 56px}
.brand{margin:0;color:var(--soft);font-size:13px;letter-spacing:.04em}
h1{margin:2px 0 0;font-size:30px;line-height:1.2;font-weight:650;letter-spacing:-.015em;overflow-wrap:anywhere}
.facts{margin:6px 0 0;color:var(--soft)}
.lead{margin:18px 0 0;max-width:72ch;font-size:16.5px;overflow-wrap:anywhere}
section{margin-top:44px}
h2{margin:0;font-size:18px;font-weight:650;letter-spacing:-.005em}
.about{margin:4px 0 14px;max-width:80ch;color:var(--soft);font-size:14px}
h2+.lead{margin-top:6px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
.scroll:focus-visible,button:focus-visible,summary:focus-visible{outline:2px solid var(--merged);outline-offset:2px}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:13.5px}
th,td{padding:7px 8px;text-align:right;vertical-align:middle;white-space:nowrap;border-bottom:1px solid var(--line)}
tbody tr:last-child td{border-bottom:0}
tbody tr:hover td{background:color-mix(in srgb,var(--heat) 7%,var(--card))}
td{background:var(--card)}
th{color:var(--soft);font-weight:500;font-size:12.5px;vertical-align:bottom;background:var(--card)}
th small{display:block;font-weight:400;font-size:11.5px;line-height:1.35;opacity:.85}
th.group{text-align:center;border-bottom:1px solid var(--line);border-left:1px solid var(--line);color:var(--ink)}
th button{all:unset;cursor:pointer;font:inherit;color:inherit}
th button:hover{color:var(--ink)}
th[aria-sort=ascending] button::after{content:" ↑"}
th[aria-sort=descending] button::after{content:" ↓"}
.left{text-align:left}
.rank{font-weight:600;padding-right:calc(4px + .8em)}.tied{padding-right:4px}
.tie{display:inline-block;width:.8em;color:var(--soft);font-weight:400}
th.left:nth-child(1),th.left:nth-child(2),td.model{text-align:left}
td.model{position:sticky;left:0;z-index:1;min-width:176px;max-width:230px}
.name{display:block;font-weight:600;white-space:normal;overflow-wrap:anywhere;line-height:1.3}
.how{display:block;color:var(--soft);font-size:12.5px;line-height:1.35;white-space:normal;overflow-wrap:anywhere}
.kind{color:var(--k);font-weight:600}
.name+.kind{display:block;font-size:12.5px;line-height:1.35}
.kind::before{content:"";display:inline-block;width:8px;height:8px;margin-right:5px;border-radius:50%;
background:var(--k);border:1.5px solid var(--k);vertical-align:0}
tr{--k:var(--soft)}
tr.source{--k:var(--source)}tr.trained{--k:var(--trained)}tr.merged{--k:var(--merged)}
tr.fused{--k:var(--fused)}tr.routed{--k:var(--routed)}tr.ensemble{--k:var(--ensemble)}
tr.source .kind::before,tr.trained .kind::before{border-radius:1px}
tr.control .kind::before,tr.control circle{fill:var(--card);background:transparent}
tr.control .kind::before{border-style:dashed}
.plot{text-align:left}
.with{display:inline-block;min-width:3.4em;margin-right:6px;text-align:right;vertical-align:middle}
td small{color:var(--soft);font-size:12px}
.half{margin-left:5px;color:var(--soft);font-size:12px}
td[title] .with{padding-right:.6em}td[title] .sure{padding-right:0}
.star{display:inline-block;width:.6em;text-align:left;color:var(--good);font-weight:700}
svg{vertical-align:middle}
svg line{stroke-linecap:round}
.axis{stroke:var(--axis);stroke-width:1}
.span{width:96px;height:18px;print-color-adjust:exact;-webkit-print-color-adjust:exact;
background:linear-gradient(var(--axis),var(--axis)) 0 50%/100% 1px no-repeat}
.span.zero{background:linear-gradient(var(--soft),var(--soft)) 50% 0/1px 100% no-repeat,
linear-gradient(var(--axis),var(--axis)) 0 50%/100% 1px no-repeat}
.span path{stroke:var(--k);stroke-width:2.2;opacity:.6;stroke-linecap:round}
circle{fill:var(--k);stroke:var(--k);stroke-width:1.6}
.none{color:var(--soft)}
.heat,tbody tr:hover td.heat{background:color-mix(in srgb,var(--heat) calc(var(--h)*46%),var(--card))}
td.absent{background:repeating-linear-gradient(45deg,var(--line) 0 2px,var(--card) 2px 7px)}
.note{color:var(--soft);white-space:normal;overflow-wrap:anywhere}
.failed ul{margin:8px 0 0;padding-left:18px;max-width:90ch}
.failed li{margin:3px 0;overflow-wrap:anywhere}
details{margin-top:14px}
details .about{margin:10px 0 0}
summary{cursor:pointer;color:var(--soft);margin-bottom:10px}
dl{display:grid;grid-template-columns:minmax(90px,max-content) 1fr;gap:6px 20px;margin:0;max-width:100ch;font-size:14px}
dt{font-weight:600;max-width:130px}dd{margin:0;color:var(--soft)}
footer{margin-top:44px;padding-top:14px;border-top:1px solid var(--line);color:var(--soft);font-size:12.5px;
overflow-wrap:anywhere}
@media (max-width:640px){main{padding:24px 14px 40px}h1{font-size:24px}.lead{font-size:15.5px}
th,td{padding:6px 9px}td.model{min-width:132px;max-width:132px;box-shadow:1px 0 0 var(--line)}
.plot{min-width:112px}.with{display:block;margin:0 0 1px;text-align:left}
.plot .star{width:.5em}dl{grid-template-columns:1fr;gap:1px}dd{margin-bottom:9px}dt{max-width:none}}
@media print{body{background:#fff}main{max-width:none;padding:0}.scroll{overflow:visible;border:0}
section{break-inside:avoid}}
"""

SCRIPT = """
document.querySelectorAll("table").forEach(function(table){
  table.querySelectorAll("thead button").forEach(function(button){
    button.addEventListener("click",function(){
      var th=button.parentNode,row=th.parentNode,at=Array.prototype.indexOf.call(row.children,th);
      var down=th.getAttribute("aria-sort")!=="descending";
      row.querySelectorAll("th").forEach(function(other){if(other!==th)other.setAttribute("aria-sort","none")});
      th.setAttribute("aria-sort",down?"descending":"ascending");
      var value=function(line){var cell=line.children[at],v=cell.dataset.v;return v===undefined?cell.textContent:v};
      var body=table.tBodies[0],lines=Array.prototype.slice.call(body.rows);
      lines.sort(function(a,b){
        var x=value(a),y=value(b),empty=function(v){return v===""||v==="\\u2013"};
        if(empty(x)||empty(y))return empty(x)-empty(y);
        var numbers=!isNaN(x)&&!isNaN(y),order=numbers?x-y:x<y?-1:x>y?1:0;
        return down?-order:order;
      });
      lines.forEach(function(line){body.appendChild(line)});
    });
  });
});
"""
