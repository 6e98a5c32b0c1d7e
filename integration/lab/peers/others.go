package peers

import "path/filepath"

// bird is BIRD's OSPF with its BFD of 50 ms x 3. It computes routes once a second, which cannot be changed to less.
func bird(n node) []daemon {
	var t text
	t.line("router id %s;", n.id)
	t.line("log stderr { warning, error, fatal };")
	t.line("protocol device {}")
	t.line("protocol kernel { ipv4 { import none; export all; }; }")
	t.line(`protocol bfd { interface "*" { interval 50 ms; multiplier 3; }; }`)
	t.line("protocol ospf v2 {")
	t.line(" ipv4 { import all; export none; };")
	t.line(" tick 1;")
	t.line(" area 0 {")
	t.line(`  interface "%s" { stub yes; };`, lanDevice)
	for _, p := range n.ports {
		t.line(`  interface "%s" { type ptp; cost %d; hello 1; dead 4; bfd yes; };`, p.device, p.cost)
	}
	t.line(" };")
	t.line("}")
	return []daemon{{
		name: "bird", config: map[string]string{"bird.conf": t.String()},
		argv: []string{find("bird"), "-f", "-c", filepath.Join(n.dir, "bird.conf"), "-s", "/run/bird.ctl", "-P", "/run/bird.pid"},
	}}
}

// babeld announces the LAN and nothing else; all else is its default.
func babeld(n node) []daemon {
	var t text
	for _, p := range n.ports {
		t.line("interface %s type tunnel", p.device)
	}
	t.line("redistribute ip %s allow", n.lan)
	t.line("redistribute local deny")
	return []daemon{{
		name: "babeld", config: map[string]string{"babeld.conf": t.String()},
		argv: []string{find("babeld"), "-c", filepath.Join(n.dir, "babeld.conf"), "-I", "/run/babeld.pid", "-S", "/run/babeld.state"},
	}}
}
