#!lua
-- Stops a partition from deciding, because decisions of it were lost. The first reason stays; a rebuild ends it.
--
-- KEYS 1 meta  hash  the partition's books
-- ARGV 1 the reason
-- Returns FROZEN | CLOSED_BOOKS (they are gone, or frozen already)
--@include lists
--@include partition
local meta, reason = KEYS[1], ARGV[1]

if not open_books(meta) then return { 'CLOSED_BOOKS' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('HSET', meta, 'frozen', reason)
return { 'FROZEN' }
