package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// A Host is where something is reached: one address, or a DNS name that may stand
// for several and for others later. The zero value is nowhere.
type Host struct {
	Addr netip.Addr // invalid: Name says it
	Name string     // in lower case, without a final dot
}

// An Endpoint is a port of a Host.
type Endpoint struct {
	Host
	Port uint16
}

const (
	maxHostName = 253 // RFC 1035, section 2.3.4, without the final dot
	maxLabel    = 63
)

var errHost = errors.New("is neither an address nor a full DNS name such as gw.example.net")

// parseHost reads an address that other sites can reach, or a DNS name.
func parseHost(s string) (Host, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		addr = addr.Unmap()
		if !addr.IsGlobalUnicast() || addr.Zone() != "" {
			return Host{}, fmt.Errorf("%s cannot be reached from another site", addr)
		}
		return Host{Addr: addr}, nil
	}
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	labels := strings.Split(name, ".")
	if len(labels) < 2 || len(name) > maxHostName {
		return Host{}, fmt.Errorf("%q %w", s, errHost)
	}
	for _, l := range labels {
		bad := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }
		if l == "" || len(l) > maxLabel || l[0] == '-' || l[len(l)-1] == '-' || strings.ContainsFunc(l, bad) {
			return Host{}, fmt.Errorf("%q %w", s, errHost)
		}
	}
	if last := labels[len(labels)-1]; last[0] >= '0' && last[0] <= '9' {
		return Host{}, fmt.Errorf("%q %w", s, errHost) // a mistyped address
	}
	return Host{Name: name}, nil
}

// parseEndpoint reads a host with or without a port; 0: without.
func parseEndpoint(s string) (Endpoint, error) {
	if h, err := parseHost(s); err == nil || !strings.Contains(s, ":") {
		return Endpoint{Host: h}, err
	}
	host, port := s, ""
	if _, err := netip.ParseAddr(s); err != nil { // else all of its colons are the address's
		i := strings.LastIndexByte(s, ':')
		host, port = s[:i], s[i+1:]
		if inside, ok := strings.CutPrefix(host, "["); ok && strings.HasSuffix(inside, "]") {
			host = strings.TrimSuffix(inside, "]")
		} else if strings.Contains(host, ":") {
			return Endpoint{}, fmt.Errorf("%q is not an address, a name, or one of them with a port, such as [2001:db8::1]:8686", s)
		}
	}
	h, err := parseHost(host)
	if err != nil {
		return Endpoint{}, err
	}
	p, err := parseNumber(port, 1, 65535)
	if err != nil {
		return Endpoint{}, fmt.Errorf("the port of %q is not a number from 1 to 65535", s)
	}
	return Endpoint{h, uint16(p)}, nil
}
