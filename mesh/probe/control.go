package probe

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Control messages are read in place: this runs for every datagram.

// wide: the length in a control message's header has 64 bits.
const wide = unix.SizeofCmsghdr == 16

// arrival is what the kernel tells beside a datagram.
type arrival struct {
	ifindex int
	stamp   time.Time // wall clock; zero: none
}

func parseArrival(oob []byte) arrival {
	var a arrival
	eachControl(oob, func(level, kind int32, data []byte) {
		switch {
		case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			a.ifindex = int(binary.NativeEndian.Uint32(data[16:]))
		case level == unix.SOL_SOCKET && kind == unix.SO_TIMESTAMPNS && len(data) >= 16:
			a.stamp = time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
		}
	})
	return a
}

// parseError reads an IPV6_RECVERR message: struct sock_extended_err.
func parseError(oob []byte) (unix.Errno, arrival) {
	var errno unix.Errno
	eachControl(oob, func(level, kind int32, data []byte) {
		if level == unix.IPPROTO_IPV6 && kind == unix.IPV6_RECVERR && len(data) >= 16 {
			errno = unix.Errno(binary.NativeEndian.Uint32(data))
		}
	})
	return errno, parseArrival(oob)
}

// eachControl walks control messages and stops at the first that does not fit.
func eachControl(oob []byte, f func(level, kind int32, data []byte)) {
	for len(oob) >= unix.SizeofCmsghdr {
		size := uint64(binary.NativeEndian.Uint32(oob))
		if wide {
			size = binary.NativeEndian.Uint64(oob)
		}
		if size < unix.SizeofCmsghdr || size > uint64(len(oob)) {
			return
		}
		kind := oob[unix.SizeofCmsghdr-8:]
		f(int32(binary.NativeEndian.Uint32(kind)), int32(binary.NativeEndian.Uint32(kind[4:])), oob[unix.SizeofCmsghdr:size])
		oob = oob[min(uint64(unix.CmsgSpace(int(size)-unix.SizeofCmsghdr)), uint64(len(oob))):]
	}
}

// appendPktinfo writes a control message that fixes source and interface.
func appendPktinfo(b []byte, source netip.Addr, ifindex int) []byte {
	length := unix.CmsgLen(unix.SizeofInet6Pktinfo)
	if wide {
		b = binary.NativeEndian.AppendUint64(b, uint64(length))
	} else {
		b = binary.NativeEndian.AppendUint32(b, uint32(length))
	}
	b = binary.NativeEndian.AppendUint32(b, unix.IPPROTO_IPV6)
	b = binary.NativeEndian.AppendUint32(b, unix.IPV6_PKTINFO)
	addr := netip.IPv6Unspecified().As16()
	if source.IsValid() {
		addr = source.As16()
	}
	b = append(b, addr[:]...)
	b = binary.NativeEndian.AppendUint32(b, uint32(ifindex))
	return append(b, make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo)-length)...)
}
